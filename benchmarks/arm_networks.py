"""Whether networks give the right numbers on ARM, under qemu.

    python -m benchmarks.arm_networks [--only NAME ...] [--target NAME ...]

Each module is compiled untuned for a target and run by the C example under qemu-user's model of the
processor. What is measured is numbers, not time. float32 is compared with ONNX Runtime on this
machine. int8 is compared operator by operator, each fed ONNX Runtime's own tensors (graph
optimisations off), with numpy in double precision (`benchmarks.quantized_oracle`): random weights
make a whole int8 network chaotic, so that one tie of rounding in its first layer moves the result
by more than any error of an operator would. The whole network is therefore compared with our module
for this machine, which has been compared in the same way. Rows are kept in
benchmarks/results/arm_networks.json and renewed one by one.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from benchmarks import engines, zoo
from benchmarks.agreement import relative_error
from benchmarks.machine import commit
from benchmarks.qemu import compute
from benchmarks.quantized import quantize
from benchmarks.quantized_operators import TIE, compare, run_here
from benchmarks.report import RESULTS, markdown_table, merge_rows, write_json, write_text
from tilewright.compiler.quantize.post_training import noise

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
# Largest error over the standard deviation of the output.
_FLOAT_LIMIT = 1e-3
# Signal-to-noise ratio between two of our modules; equal bytes have no noise at all.
_SAME_BYTES_DB = 999.0
_HEAD = """\
# Numbers on ARM

Written by `python -m benchmarks.arm_networks`; under qemu-user, untuned.

float32: the largest error against ONNX Runtime over the standard deviation of the output, at most
{limit:g}.

"""
_INT8_HEAD = """\

int8: every operator is fed ONNX Runtime's own tensors (graph optimisations off) and compared with
numpy in double precision. Off: bytes that are not what double precision rounds to, the greatest
difference, and how far the exact value of any of them lies from a tie of rounding, in units of the
last place (right: at most 1, on a tie to {tie:g}). Whole: the whole network beside our module for
x86-64, signal to noise in dB (999: the same bytes).

"""


@dataclass(frozen=True)
class Case:
    """One model on one target.

    Attributes:
        path: of the model that is compiled.
        feed: input name -> array.
    """

    name: str
    target: str
    path: Path
    feed: Mapping[str, np.ndarray]

    @property
    def is_int8(self) -> bool:
        """Whether it is judged operator by operator."""
        return self.name.endswith("int8")


def cases() -> Iterator[Case]:
    """Yield every network on its targets."""
    for name, targets in NETWORKS.items():
        plain, _, kind = name.partition(" ")
        path = quantize(plain, "qdq", "u8", True) if kind else zoo.load(plain)
        for target in targets:
            yield Case(name, target, path, zoo.inputs(plain, 0))


def measure(case: Case) -> dict[str, object]:
    """Compile, run and compare; return the row."""
    start = time.perf_counter()
    found = _measure_int8(case) if case.is_int8 else _measure_float(case)
    row = {"model": case.name, "target": case.target, **found, "commit": commit()}
    return row | {"wall_s": round(time.perf_counter() - start)}


def _measure_float(case: Case) -> dict[str, object]:
    expected = engines.open_onnxruntime(case.path)(case.feed)
    worst, _ = relative_error(expected, compute(case.path, case.feed, case.target))
    return {"status": "right" if worst <= _FLOAT_LIMIT else "WRONG", "error": worst}


def _measure_int8(case: Case) -> dict[str, object]:
    proto = onnx.load(case.path)
    found = compare(proto, case.feed, lambda model, feed: compute(model, feed, case.target))
    whole = compute(proto, case.feed, case.target)
    here = run_here(proto, case.feed)
    same_db = min(min(noise(whole[name], here[name]), _SAME_BYTES_DB) for name in here)
    greatest = max(max(item.greatest, item.off_greatest) for item in found)
    from_tie = max(item.from_tie for item in found)
    return {
        "status": "right" if greatest <= 1 and from_tie < TIE else "WRONG",
        "operators": len(found),
        "elements": sum(item.elements for item in found),
        "off": sum(item.off for item in found),
        "greatest": greatest,
        "from_tie": from_tie,
        "whole_db": same_db,
    }


def render(rows: list[dict]) -> str:
    """Return the page."""
    table, bytes_table = [], []
    for row in rows:
        start = [row["model"], row["target"], row["status"]]
        if "error" in row:
            table.append([*start, f"{row['error']:.1e}", row["commit"]])
        else:
            counts = [str(row[key]) for key in ("operators", "elements", "off", "greatest")]
            whole = [f"{row['from_tie']:.5f}", f"{row['whole_db']:.0f}", row["commit"]]
            bytes_table.append([*start, *counts, *whole])
    head = ["model", "target", "numbers"]
    counted = ["operators", "elements", "off", "greatest", "from a tie", "whole, dB", "commit"]
    return (
        _HEAD.format(limit=_FLOAT_LIMIT)
        + markdown_table([*head, "error", "commit"], table)
        + _INT8_HEAD.format(tie=TIE)
        + markdown_table([*head, *counted], bytes_table)
    )


def main() -> int:
    """Measure, write the results; 1 where a number is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", nargs="+", help="names of models")
    parser.add_argument("--target", nargs="+", help="targets")
    options = parser.parse_args()
    path, wrong = RESULTS / "arm_networks.json", 0
    for case in cases():
        if options.only and case.name not in options.only:
            continue
        if options.target and case.target not in options.target:
            continue
        row = measure(case)
        wrong += row["status"] != "right"
        print(row, flush=True)
        rows = merge_rows(path, [row], ("model", "target"))
        write_json(path, {"rows": rows})
        write_text(RESULTS / "arm_networks.md", render(rows))
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
