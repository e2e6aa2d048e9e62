"""Runs cases of ONNX's backend test suite through tilewright, in worker processes.

Each case is compiled to a module file and run from it; a crash or a hang costs that case only. A
case that passes is run again on the same module with fresh data, against `onnx.reference`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

# Before anything loads TVM: the cases are tiny, and a fork must not inherit a thread pool.
os.environ.setdefault("TVM_NUM_THREADS", "1")
os.environ.setdefault("TILEWRIGHT_NUM_THREADS", "1")

import numpy as np
import onnx
from onnx.backend.test.case.test_case import TestCase
from onnx.backend.test.loader import load_model_tests
from onnx.backend.test.runner import Runner
from onnx.reference import ReferenceEvaluator

from benchmarks.forked import Lost, run_forked
from tilewright.errors import TilewrightError
from tilewright.onnx_backend import TilewrightBackend, TilewrightRep

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator")
TIMEOUT_SECONDS = 300.0
# What a wrong result, or a bug of ours, raises.
_FAILURES = (
    AssertionError, ValueError, TypeError, IndexError, KeyError, AttributeError, ArithmeticError,
    RuntimeError, NotImplementedError, OSError,
)  # fmt: skip
_REASON_CHARS = 400
# (relative, share of the largest number) that a different order of summation may cost.
_FRESH_TOLERANCE = {"float16": (4e-3, 2e-3), "bfloat16": (2**-6, 2**-6)}
_QUANTIZING = {"QuantizeLinear", "QLinearConv", "QLinearMatMul", "DynamicQuantizeLinear"}
_FRESH_TOLERANCE_DEFAULT = (1e-3, 1e-5)


@dataclass(frozen=True)
class Outcome:
    """What became of one case.

    Attributes:
        status: "pass", "fail", "crash" or "timeout".
        reason: first line of the error; empty for a pass.
        fresh: how the second run on random data ended: "pass", "fail", or "none" where
            `onnx.reference` cannot say.
        fresh_reason: why, unless it passed.
    """

    status: str
    reason: str = ""
    fresh: str = "none"
    fresh_reason: str = ""

    def to_json(self) -> dict[str, str]:
        """Return the fields that say something."""
        return {name: text for name, text in asdict(self).items() if text}


@cache
def load_cases(kind: str) -> dict[str, TestCase]:
    """Load the cases of one kind; making them warns about overflows and divisions by zero."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return {case.name: _loaded(case) for case in load_model_tests(kind=kind)}


def _loaded(case: TestCase) -> TestCase:
    """Read a case that lies in files."""
    if case.model is not None or case.model_dir is None:
        return case
    folder = Path(case.model_dir)
    model = onnx.load(folder / "model.onnx")
    sets = []
    for data in sorted(folder.glob("test_data_set_*")):
        sets.append(
            (
                _protos(data, "input", [item.type for item in model.graph.input]),
                _protos(data, "output", [item.type for item in model.graph.output]),
            )
        )
    return replace(case, model=model, data_sets=sets)


def _protos(folder: Path, stem: str, types: Sequence[onnx.TypeProto]) -> list[Any]:
    kinds = {
        "tensor_type": onnx.TensorProto,
        "sequence_type": onnx.SequenceProto,
        "optional_type": onnx.OptionalProto,
    }
    protos = []
    for index in range(len(list(folder.glob(f"{stem}_*.pb")))):
        proto = kinds[types[index].WhichOneof("value")]()
        proto.ParseFromString((folder / f"{stem}_{index}.pb").read_bytes())
        protos.append(proto)
    return protos


def as_array(value: Any) -> Any:
    """Return what a data set holds as an array, or as a list of arrays."""
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    if isinstance(value, onnx.SequenceProto):
        return onnx.numpy_helper.to_list(value)
    if isinstance(value, onnx.OptionalProto):
        return onnx.numpy_helper.to_optional(value)
    return value


def check_case(case: TestCase) -> tuple[TilewrightRep, list[list[Any]], list[list[Any]]]:
    """Run a case as `onnx.backend.test` does; raise where a result is wrong."""
    prepared = TilewrightBackend.prepare(case.model)
    inputs = [[as_array(value) for value in given] for given, _ in case.data_sets]
    outputs = [[as_array(value) for value in wanted] for _, wanted in case.data_sets]
    for given, wanted in zip(inputs, outputs, strict=True):
        found = prepared.run(given)
        Runner.assert_similar_outputs(wanted, found, case.rtol, case.atol)
    return prepared, inputs, outputs


def check_fresh(
    case: TestCase, prepared: TilewrightRep, given: Sequence[Any], wanted: Sequence[Any]
) -> Outcome:
    """Run a compiled case on other data, and compare with ONNX's reference implementation."""
    passed = Outcome("pass")
    names = [item.name for item in case.model.graph.input]
    feeds = dict(zip(names, given, strict=False))
    try:
        evaluator = ReferenceEvaluator(case.model)
        Runner.assert_similar_outputs(
            wanted, evaluator.run(None, dict(feeds)), case.rtol, case.atol
        )
    except _FAILURES as error:
        return replace(passed, fresh_reason=f"no reference: {_first_line(error)}")
    random = np.random.default_rng(len(case.name))
    other = {
        name: value if name in prepared.special else _fresh(value, random)
        for name, value in feeds.items()
    }
    if all(np.array_equal(other[name], feeds[name]) for name in feeds if _is_array(feeds[name])):
        return replace(passed, fresh_reason="no input to vary")
    try:
        expected = evaluator.run(None, dict(other))
        if _overflows(expected) and not _overflows(wanted):
            return replace(passed, fresh_reason="no reference: it overflows")
    except _FAILURES as error:
        return replace(passed, fresh_reason=f"no reference: {_first_line(error)}")
    try:
        found = prepared.run([other[name] for name in names if name in other])
        for actual, reference in zip(found, expected, strict=True):
            _compare_fresh(actual, reference, 1 if _QUANTIZING & _operators(case) else 0)
    except (*_FAILURES, TilewrightError) as error:
        return replace(passed, fresh="fail", fresh_reason=_first_line(error))
    return replace(passed, fresh="pass")


def _overflows(values: Sequence[Any]) -> bool:
    """Say whether there is NaN or infinity in floating-point results."""
    arrays = [value for value in values if _is_array(value) and value.dtype.kind == "f"]
    return not all(np.isfinite(array).all() for array in arrays)


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray)


def _fresh(value: Any, random: np.random.Generator) -> Any:
    """Return random data of the same type within the range of the given data.

    Wide integers may be indices into different dimensions, which stay valid if rows change places.
    """
    if not _is_array(value) or not value.size or value.dtype == object:
        return value
    if value.dtype in (np.int32, np.int64):
        return random.permutation(value, axis=0) if value.ndim else value
    if value.dtype == np.bool_ or value.dtype.itemsize == 1:
        return random.choice(value.reshape(-1), value.shape)
    if value.dtype.kind in "iu":
        low, high = int(value.min()), int(value.max())
        other = random.integers(low, high, value.shape, value.dtype, endpoint=True)
        # What had no zero may be a divisor.
        return other if (value == 0).any() else np.where(other == 0, value, other)
    wide = value.astype(np.complex128 if value.dtype.kind == "c" else np.float64)
    finite = wide[np.isfinite(wide)]
    if not finite.size:
        return value
    if np.array_equal(finite, np.round(finite)):  # indices or counts in a floating type
        return random.permutation(value.reshape(-1)).reshape(value.shape)
    return random.uniform(finite.min(), finite.max(), value.shape).astype(value.dtype)


def _operators(case: TestCase) -> set[str]:
    return {node.op_type for node in case.model.graph.node}


def _compare_fresh(found: Any, expected: Any, steps: int) -> None:
    """Compare; 8-bit integers that were rounded from floats may differ by `steps`."""
    if isinstance(expected, list):
        for actual, reference in zip(found, expected, strict=True):
            _compare_fresh(actual, reference, steps)
        return
    expected = np.asarray(expected)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    if found.dtype.kind in "iub" and found.dtype.name in np.sctypeDict:
        atol = steps if found.dtype.itemsize == 1 else 0
        np.testing.assert_allclose(found, expected, rtol=0, atol=atol)
        return
    relative, share = _FRESH_TOLERANCE.get(found.dtype.name, _FRESH_TOLERANCE_DEFAULT)
    actual, reference = found.astype(np.float64), expected.astype(np.float64)
    finite = np.abs(reference[np.isfinite(reference)])
    scale = float(finite.max()) if finite.size else 0.0
    np.testing.assert_allclose(actual, reference, rtol=relative, atol=share * scale)


def run_case(case: TestCase, fresh: bool) -> Outcome:
    """Run one case in this process."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            prepared, inputs, outputs = check_case(case)
        except (*_FAILURES, TilewrightError) as error:
            return Outcome("fail", _first_line(error))
        if not fresh:
            return Outcome("pass")
        return check_fresh(case, prepared, inputs[0], outputs[0])


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = "; ".join(lines[: 4 if isinstance(error, AssertionError) else 1])
    name = "" if isinstance(error, TilewrightError) else f"{type(error).__name__}: "
    return (name + text)[:_REASON_CHARS]


def run_cases(
    cases: Mapping[str, TestCase],
    *,
    workers: int = 1,
    fresh: bool = True,
    on_outcome: Callable[[str, Outcome], None] = lambda _name, _outcome: None,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> dict[str, Outcome]:
    """Run cases in forked worker processes; return what became of each, in order.

    Args:
        cases: by name.
        workers: processes at once.
        fresh: repeat passes on random data.
        on_outcome: called as each case ends.
        timeout_seconds: limit per case.
    """
    import tilewright.compiler.package
    import tilewright.compiler.pipeline  # loaded once here, and inherited

    tilewright.compiler.package.prepare_runtime()

    def ended(name: str, result: Outcome | Lost) -> None:
        on_outcome(name, _outcome(result))

    results = run_forked(
        list(cases),
        lambda name: run_case(cases[name], fresh),
        workers=workers,
        timeout_seconds=timeout_seconds,
        on_result=ended,
    )
    return {name: _outcome(result) for name, result in results.items()}


def _outcome(result: Outcome | Lost) -> Outcome:
    return Outcome(result.status, result.reason) if isinstance(result, Lost) else result
