"""Other engines and tuners that tilewright is compared with, and the operators to compare on."""

from tilewright.baselines.bench_ops import OperatorOptions, bench_operators
from tilewright.baselines.peers import PEERS, Case, Peer, parse_peers
from tilewright.baselines.suite import Operator, build_model, load_suite

__all__ = [
    "PEERS",
    "Case",
    "Operator",
    "OperatorOptions",
    "Peer",
    "bench_operators",
    "build_model",
    "load_suite",
    "parse_peers",
]
