"""Compare int8 models with ONNX Runtime: `python -m benchmarks.quantized_agreement`.

Models of the zoo, quantized by ONNX Runtime's own quantizer in all its forms. Operators: every
operator is fed ONNX Runtime's own tensors (its graph optimisations off), see
`benchmarks.quantized_operators`; a difference of one is a tie where the value before rounding lies
within 0.002 of one half: single-precision sums of ONNX Runtime end on either side of it. Its own
integer kernels saturate sums of two products where there is no VNNI; what they compute otherwise
than the same operator on floats is counted apart, and left out of the greatest difference. Model:
the signal-to-noise ratio of the whole model against the same run of ONNX Runtime, ours and that of
ONNX Runtime with its optimisations (999 dB: equal).
"""

import argparse
import sys
from itertools import product

import onnx

from benchmarks import quantized, zoo
from benchmarks.machine import commit, describe
from benchmarks.quantized_operators import compare
from benchmarks.report import (
    RESULTS,
    markdown_machine,
    markdown_table,
    merge_rows,
    write_json,
    write_text,
)
from benchmarks.worker import StepError, give_result, run_step

FORMS, ACTS, WEIGHTS = ("qdq", "qoperator"), ("u8", "s8"), ("channel", "tensor")
_KEYS = ["model", "form", "act", "weights"]


def operators(name: str, form: str, act: str, weights: str) -> dict:
    """Return the counts of the comparison operator by operator."""
    path = quantized.model_path(name, form, act, weights == "channel")
    found = compare(onnx.load(path), zoo.inputs(name, 0))
    worst = max(found, key=lambda item: (item.greatest, item.ties))
    return {
        "operators": len(found),
        "elements": sum(item.elements for item in found),
        "differing": sum(item.differing for item in found),
        "saturated": sum(item.saturated for item in found),
        "ties": sum(item.ties for item in found),
        "greatest": worst.greatest,
        "worst": f"{worst.operator} {worst.tensor}",
    }


def whole_model(name: str, form: str, act: str, weights: str) -> dict:
    """Return the signal-to-noise ratios of the whole model."""
    import tilewright

    path = quantized.model_path(name, form, act, weights == "channel")
    tilewright.compile(path, logs=()).save(path.with_suffix(".so"))
    return quantized.fidelity(name, path)


def measure(*row: str) -> dict:
    """Return a row of the table; each step runs in a process of its own."""
    result = dict(zip(_KEYS, row, strict=True)) | {"commit": commit()}
    try:
        for step in ("quantize", "operators", "model"):
            options = ["--step", step, *(f"--only={','.join(row)}",)]
            result |= run_step("benchmarks.quantized_agreement", options) or {}
    except StepError as error:
        result["error"] = str(error).replace("|", "/")
    return result


def render(rows: list[dict]) -> str:
    """Return the Markdown page."""
    header = ["model", "operators", "elements", "differing", "ORT saturates", "ties", "greatest"]
    header += ["SNR ours / ORT optimised, dB", "commit"]
    cells = []
    for row in sorted(rows, key=lambda row: [row[key] for key in _KEYS]):
        label = f"{row['model']} {row['form']} {row['act']} per {row['weights']}"
        if "error" in row:
            cells.append([label, f"FAILS: {row['error']}", *[""] * 6, row["commit"]])
            continue
        names = ("operators", "elements", "differing", "saturated", "ties", "greatest")
        counts = [str(row[name]) for name in names]
        cells.append([label, *counts, f"{row['ours_db']:.1f} / {row['ort_db']:.1f}", row["commit"]])
    return (
        f"# Agreement of quantized models\n\n{__doc__.split(chr(10), 2)[2]}\n"
        f"{markdown_table(header, cells)}\n{markdown_machine(describe())}"
    )


def _run_single_step(step: str, only: str) -> dict | None:
    name, form, act, weights = only.split(",")
    if step == "quantize":
        quantized.quantize(name, form, act, weights == "channel")
        return None
    return (operators if step == "operators" else whole_model)(name, form, act, weights)


def main() -> int:
    """Compare what the command line names; return 1 where an operator is off by more than one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(quantized.MODELS))
    parser.add_argument("--forms", default=",".join(FORMS))
    parser.add_argument("--acts", default=",".join(ACTS))
    parser.add_argument("--weights", default=",".join(WEIGHTS))
    parser.add_argument("--step", help="quantize, operators or model, in this process")
    parser.add_argument("--only", help="model,form,act,weights of a step")
    args = parser.parse_args()
    if args.step:
        give_result(_run_single_step(args.step, args.only))
        return 0
    failed = False
    wanted = (args.weights, args.forms, args.acts, args.models)
    for weights, form, act, name in product(*(said.split(",") for said in wanted)):
        row = measure(name, form, act, weights)
        failed |= (
            "error" in row
            or row["greatest"] > 1
            or row["differing"] > row["ties"] + row["saturated"]
        )
        print(row, flush=True)
        data = RESULTS / "quantized_agreement.json"
        merged = merge_rows(data, [row], _KEYS)
        write_json(data, {"machine": describe(), "rows": merged})
        write_text(RESULTS / "quantized_agreement.md", render(merged))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
