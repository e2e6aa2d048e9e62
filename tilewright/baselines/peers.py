"""The engines by name: what each needs, and how it gets an operator or a model in place."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tilewright.baselines import ansor, metaschedule, onnxruntime, openvino, torch
from tilewright.baselines.case import Case
from tilewright.baselines.engine import Contender, Engine, local
from tilewright.baselines.environment import ansor_environment
from tilewright.errors import MeasureError

_TORCH = ("torch", "onnx2torch", "onnxruntime")
_BENCH_EXTRA = 'not installed; pip install "tilewright[bench]"'


@dataclass(frozen=True, slots=True)
class Peer:
    """One engine to compare with.

    Attributes:
        start: puts a case in place; raises whatever the engine raises.
        missing: why the engine cannot be used here, or None.
        about: what it is and how it is set up, for the report.
    """

    start: Callable[[Case], Contender]
    missing: Callable[[], str | None]
    about: str


def _library(
    open_model: Callable[[Path, int], Engine], packages: Sequence[str], about: str
) -> Peer:
    def missing() -> str | None:
        absent = [name for name in packages if importlib.util.find_spec(name) is None]
        return _BENCH_EXTRA if absent else None

    return Peer(lambda case: local(open_model(case.model, case.threads), case.feed), missing, about)


PEERS: Mapping[str, Peer] = {
    "onnxruntime": _library(
        onnxruntime.open_model, ["onnxruntime"], "ONNX Runtime, all optimisations, CPU provider"
    ),
    "openvino": _library(
        openvino.open_model, ["openvino"], "OpenVINO, float32, latency mode, one stream"
    ),
    "torch": _library(torch.open_eager, _TORCH, "torch, eager, channels first"),
    "inductor": _library(torch.open_inductor, _TORCH, "torch.compile with Inductor"),
    "ansor": Peer(
        ansor.start,
        lambda: ansor_environment().missing(),
        "Ansor: auto_scheduler of TVM 0.17 with LLVM 10, the faster of NCHW and NHWC, weights "
        "packed (layout rewrite); whole models in NHWC",
    ),
    "metaschedule": Peer(
        metaschedule.start,
        metaschedule.missing,
        "MetaSchedule of TVM 0.27 on the same PrimFuncs, with the same LLVM",
    ),
}
"""Peers by name."""

OURS = "tilewright"


def parse_peers(text: str) -> tuple[str, ...]:
    """Read comma-separated names.

    Raises:
        MeasureError: a name is unknown.
    """
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        if name not in PEERS:
            raise MeasureError(f"unknown peer '{name}'; known are {', '.join(PEERS)}")
    return names
