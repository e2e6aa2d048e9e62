"""Other engines and tuners that tilewright is compared with, and the suites to compare on.

Names are imported when they are first used: to open one engine loads no other.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tilewright.baselines.bench_models import bench
    from tilewright.baselines.bench_ops import bench_operators
    from tilewright.baselines.budget import Budget
    from tilewright.baselines.case import Case
    from tilewright.baselines.contest import Options
    from tilewright.baselines.peers import PEERS, Peer, parse_peers
    from tilewright.baselines.suite import Operator, build_model, load_suite

_HOME = {
    "PEERS": "peers",
    "Budget": "budget",
    "Case": "case",
    "Operator": "suite",
    "Options": "contest",
    "Peer": "peers",
    "bench": "bench_models",
    "bench_operators": "bench_ops",
    "build_model": "suite",
    "load_suite": "suite",
    "parse_peers": "peers",
}

__all__ = [
    "PEERS",
    "Budget",
    "Case",
    "Operator",
    "Options",
    "Peer",
    "bench",
    "bench_operators",
    "build_model",
    "load_suite",
    "parse_peers",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tilewright.baselines' has no attribute '{name}'")
    return getattr(import_module(f"tilewright.baselines.{_HOME[name]}"), name)
