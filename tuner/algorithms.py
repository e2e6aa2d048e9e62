"""Measure which algorithm computes a convolution fastest: direct, or a variant of Winograd's.

The algorithm is part of a task's choice, but it decides which tasks there are: three instead of one
for Winograd's. So it is measured first, on modules of one convolution with bias and ReLU, whose
kernels take what logs know of their loops and else the compiler's decisions. Alternatives that are
estimated much slower are left out, and one whose results are too far from the direct ones never
wins.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from tilewright.compiler.algorithms import Convolution, estimate_seconds
from tilewright.compiler.package import package
from tilewright.compiler.pipeline import graph_passes, lower
from tilewright.compiler.program import TensorSpec
from tilewright.compiler.targets import Target
from tilewright.compiler.tasks import Lookup
from tilewright.compiler.winograd import Winograd
from tilewright.frontends.onnx import import_onnx
from tilewright.tuner.candidate import Candidate, canonical_json
from tilewright.tuner.lookup import ALGORITHM
from tilewright.tuner.measure import MeasureOptions
from tilewright.tuner.operators import operator_model
from tilewright.tuner.processors import place
from tilewright.tuner.records import (
    Record,
    Status,
    kernels_version,
    now,
    processor_name,
    target_data,
    versions,
)
from tilewright.tuner.timing import exclusive
from tilewright.tuner.worker.process import WorkerDied, WorkerProcess, WorkerTimeout

# An alternative estimated slower than the best by more than this factor is not measured.
_IMPLAUSIBLE = 1.6
_ROUNDS = 15
_TIMEOUT_S = 60.0
# Largest error in standard deviations of the output: F(4x4) reaches 1e-5 with 512 channels.
_TOLERANCE = 1e-3


def find_convolutions(module: Any, target: Target) -> Counter[Convolution]:
    """Return the convolutions of an imported Relax module that have a choice, with their calls."""
    found: Counter[Convolution] = Counter()

    def note(convolution: Convolution, _target: Target) -> Winograd | None:
        found[convolution] += 1
        return None

    for each in graph_passes(target, winograd=note):
        module = each(module)
    return found


def plausible(convolution: Convolution, target: Target) -> list[str]:
    """Return the algorithms worth measuring, direct first."""
    seconds = estimate_seconds(convolution, target)
    least = min(seconds.values())
    return [name for name, estimate in seconds.items() if estimate <= _IMPLAUSIBLE * least]


def candidate(name: str) -> Candidate:
    """Return the candidate that stands for an algorithm."""
    return Candidate((), canonical_json({"kind": ALGORITHM, "name": name}))


def measure_algorithms(
    convolutions: Sequence[Convolution],
    target: Target,
    tuned: Lookup,
    options: MeasureOptions,
    worth: Callable[[Convolution, Target], list[str]] = plausible,
) -> Iterator[list[Record]]:
    """Yield, for each convolution, one record for each algorithm worth measuring.

    Those with one such algorithm, or with padding that is not the same on both sides, are left
    to the estimate.

    Args:
        convolutions: distinct ones.
        target: what for; it must run here, on one thread.
        tuned: decisions for their kernels.
        options: processor, lock and seed.
        worth: says which algorithms of a convolution to measure.
    """
    cpu = place(options.threads, options.builders, options.cpu, exclusive=False).timing
    worker = WorkerProcess(
        "tilewright.tuner.worker.modules",
        {"cpu": cpu, "threads": options.threads},
        options.memory_bytes,
        {"OMP_NUM_THREADS": "1"},
    )
    try:
        for convolution in convolutions:
            names = worth(convolution, target)
            if len(names) > 1 and _padding(convolution) is not None:
                answer = _race(worker, convolution, names, target, tuned, options)
                yield _records(convolution, names, answer, target, options)
    finally:
        worker.close()


def _race(
    worker: WorkerProcess,
    convolution: Convolution,
    names: Sequence[str],
    target: Target,
    tuned: Lookup,
    options: MeasureOptions,
) -> dict[str, Any]:
    """Build modules and time them; where that fails, say why under "error"."""
    with tempfile.TemporaryDirectory(prefix="tilewright-") as folder:
        paths = [Path(folder, f"{name}.so") for name in names]
        for name, path in zip(names, paths, strict=True):
            _build(convolution, name, target, tuned, path)
        request = {"paths": [str(path) for path in paths], "rounds": _ROUNDS, "seed": options.seed}
        with exclusive(options.lock):
            try:
                return worker.call("race", _TIMEOUT_S, **request)
            except (WorkerDied, WorkerTimeout) as error:
                return {"error": str(error)}


def _padding(convolution: Convolution) -> int | None:
    """Return the padding on each side, or None where the sides or dilations differ."""
    if len(set(convolution.dilation)) > 1:
        return None
    (_, _, *outs), (_, _, *wide) = convolution.out, convolution.data
    windows = convolution.weight[2:]
    steps = (*(1 for _ in windows[:-2]), *convolution.dilation)
    around = {
        out + (window - 1) * step - data
        for out, data, window, step in zip(outs, wide, windows, steps, strict=True)
    }
    total = around.pop()
    return total // 2 if not around and total % 2 == 0 and total >= 0 else None


def _build(convolution: Convolution, name: str, target: Target, tuned: Lookup, path: Path) -> Path:
    """Compile one convolution with bias and ReLU by one algorithm."""
    pad = _padding(convolution)
    assert pad is not None
    imported = import_onnx(
        operator_model(
            f"conv{len(convolution.data) - 2}d",
            *(convolution.data, convolution.weight),
            pad=pad,
            dilation=convolution.dilation[0],
        )
    )
    inputs, outputs = (
        [TensorSpec(spec.name, spec.shape, spec.dtype) for spec in specs]
        for specs in (imported.inputs, imported.outputs)
    )
    lowered = lower(
        *(imported.module, inputs, outputs, target),
        tuned=tuned,
        winograd=lambda found, _target: found.variants[name],
    )
    package(lowered.program, target, path)
    return path


def describe_convolution(convolution: Convolution) -> dict[str, Any]:
    """Return what a record says of its task, as `workload.describe` does."""
    return {
        "name": "algorithm of a convolution",
        "blocks": [ALGORITHM],
        "shapes": [list(convolution.data), list(convolution.weight), list(convolution.out)],
        "dtypes": ["float32"] * 3,
        "constants": [1],
        "images": [0, 2],
        "outputs": 1,
        "macs": convolution.multiplications,
        "axes": [],
    }


def _records(
    convolution: Convolution,
    names: Sequence[str],
    answer: Mapping[str, Any],
    target: Target,
    options: MeasureOptions,
) -> list[Record]:
    hardware = {"processor": processor_name(), "threads": options.threads, "cold": options.cold}
    failed = answer.get("error", "")
    found = []
    for index, name in enumerate(names):
        status: Status = "run_error" if failed else "ok"
        error = failed
        if not failed and answer["errors"][index] > _TOLERANCE:
            status = "wrong_output"
            error = f"{answer['errors'][index]:.1e} standard deviations from {names[0]}"
        found.append(
            Record(
                task_key=convolution.key,
                task=describe_convolution(convolution),
                target=target_data(target),
                candidate=candidate(name),
                status=status,
                error=error,
                run_times_s=(median(answer["seconds"][index]),) if status == "ok" else (),
                hardware=hardware,
                seed=options.seed,
                versions={**versions(), **kernels_version(candidate(name))},
                created_at=now(),
            )
        )
    return found


__all__ = [
    "candidate",
    "describe_convolution",
    "find_convolutions",
    "measure_algorithms",
    "plausible",
]
