"""Whether models and operators give the right numbers on ARM, under qemu.

    python -m benchmarks.arm_networks [--only NAME ...] [--target NAME ...]

Each module is compiled untuned for a target, run once by the C example under qemu-user's model of
the processor, and compared with ONNX Runtime on this machine; int8 with our own module for this
machine, because ONNX Runtime's kernels saturate on processors without VNNI. What is measured is
numbers, not time. Rows are kept in
benchmarks/results/arm_networks.json and renewed one by one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

import tilewright
from benchmarks import zoo
from benchmarks.agreement import relative_error
from benchmarks.machine import commit
from benchmarks.qemu import BOARDS
from benchmarks.quantized import quantize
from benchmarks.report import RESULTS, markdown_table, merge_rows, write_json, write_text
from tilewright.baselines.suite import build_model, load_suite

AARCH64 = ("aarch64:cortex-a72", "aarch64:cortex-a76")
ARMV7 = "armv7:cortex-a7"
NETWORKS = {
    "resnet18": (*AARCH64, ARMV7),
    "mobilenetv2": AARCH64,
    "bert_tiny": AARCH64,
    "rlfn": AARCH64,
    "resnet18 int8": AARCH64,
    "mobilenetv2 int8": (ARMV7,),
}
# Largest error over the standard deviation of the output; int8 by the noise against the signal.
_FLOAT_LIMIT = 1e-3
_INT8_LEAST_DB = 60.0
_HEAD = """\
# Numbers on ARM

Written by `python -m benchmarks.arm_networks`; under qemu-user, untuned, against ONNX Runtime. The
error is the largest one over the standard deviation of the output, at most {limit:g}; for int8 it
is the signal-to-noise ratio against our module for x86-64, at least {least:g} dB (999: the same
bytes). "alt" are the operators of the suite.

"""


@dataclass(frozen=True)
class Case:
    """One model on one target.

    Attributes:
        model: path or model that both run.
        feed: input name -> array.
    """

    name: str
    target: str
    model: Path | onnx.ModelProto
    feed: Mapping[str, np.ndarray]

    @property
    def is_int8(self) -> bool:
        """Whether it is judged by noise."""
        return self.name.endswith("int8")


def cases() -> Iterator[Case]:
    """Yield every network and operator on its targets."""
    for name, targets in NETWORKS.items():
        plain, _, kind = name.partition(" ")
        path = quantize(plain, "qdq", "u8", True) if kind else zoo.load(plain)
        for target in targets:
            yield Case(name, target, path, zoo.inputs(plain, 0))
    for operator in load_suite():
        data = np.random.default_rng(1).standard_normal(operator.data_shape, np.float32)
        for target in AARCH64:
            yield Case(f"alt {operator.name}", target, build_model(operator), {"data": data})


def reference(case: Case) -> dict[str, np.ndarray]:
    """Return the outputs of ONNX Runtime, or for int8 of this machine's module."""
    if case.is_int8:
        return tilewright.compile(case.model, logs=()).run(case.feed)
    import onnxruntime

    model = case.model if isinstance(case.model, Path) else case.model.SerializeToString()
    session = onnxruntime.InferenceSession(model, None, ["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, dict(case.feed)), strict=True))


def measure(case: Case) -> dict[str, object]:
    """Compile, run and compare; return the row."""
    expected = reference(case)
    with tempfile.TemporaryDirectory(prefix="tilewright-") as folder:
        path = Path(folder, "model.so")
        tilewright.compile(case.model, case.target, logs=()).save(path)
        start = time.perf_counter()
        outputs = BOARDS[case.target].run(path, case.feed)
        seconds = time.perf_counter() - start
    found = dict(zip(expected, outputs, strict=True))
    worst, _ = relative_error(expected, found)
    noise_db = min(_ratio(expected[name], found[name]) for name in expected)
    good = noise_db >= _INT8_LEAST_DB if case.is_int8 else worst <= _FLOAT_LIMIT
    return {
        "model": case.name,
        "target": case.target,
        "status": "right" if good else "WRONG",
        "error": worst,
        "noise_db": noise_db,
        "qemu_s": seconds,
        "commit": commit(),
    }


def _ratio(expected: np.ndarray, found: np.ndarray) -> float:
    wanted, got = expected.astype(np.float64), found.astype(np.float64)
    noise = np.square(wanted - got).sum()
    return 999.0 if noise == 0 else float(10 * np.log10(np.square(wanted).sum() / noise))


def render(rows: list[dict]) -> str:
    """Return the page: networks row by row, the operators of a target as one row."""
    table = []
    for row in rows:
        if not row["model"].startswith("alt "):
            error = f"{row['noise_db']:.0f} dB" if "int8" in row["model"] else f"{row['error']:.1e}"
            table.append([row["model"], row["target"], row["status"], error, row["commit"]])
    for target in dict.fromkeys(row["target"] for row in rows):
        mine = [r for r in rows if r["target"] == target and r["model"].startswith("alt ")]
        if mine:
            worst = max(mine, key=lambda row: row["error"])
            right = sum(row["status"] == "right" for row in mine)
            status = f"{right} of {len(mine)} right"
            error = f"{worst['error']:.1e} ({worst['model'].removeprefix('alt ')})"
            table.append(["alt, all operators", target, status, error, mine[-1]["commit"]])
    head = _HEAD.format(limit=_FLOAT_LIMIT, least=_INT8_LEAST_DB)
    return head + markdown_table(["model", "target", "numbers", "error", "commit"], table)


def main() -> int:
    """Measure, write the results; 1 where a number is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", nargs="+", help="start of the names of models and operators")
    parser.add_argument("--target", nargs="+", help="targets")
    options = parser.parse_args()
    path, rows, wrong = RESULTS / "arm_networks.json", [], 0
    for case in cases():
        if options.only and not case.name.startswith(tuple(options.only)):
            continue
        if options.target and case.target not in options.target:
            continue
        row = measure(case)
        wrong += row["status"] != "right"
        print(case.name, case.target, row["status"], f"{row['error']:.1e}", flush=True)
        rows = merge_rows(path, [row], ("model", "target"))
        write_json(path, {"rows": rows})
        write_text(RESULTS / "arm_networks.md", render(rows))
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
