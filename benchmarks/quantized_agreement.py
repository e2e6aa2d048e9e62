"""Compare int8 models with ONNX Runtime: `python -m benchmarks.quantized_agreement`.

Models of the zoo, quantized by ONNX Runtime's own quantizer in all its forms. Operators: every
operator is fed ONNX Runtime's own tensors (its graph optimisations off) and compared twice: with
what ONNX Runtime computes, and with numpy in double precision fed the same (`quantized_oracle`).
ONNX Runtime's integer kernels saturate sums of two products where there is no VNNI, and its softmax
on bytes reads a table: the elements that it computes otherwise than double precision rounds, ties
left out, are counted and not compared. Off: ours that are not what double precision rounds to, the
greatest difference, and how far the exact value of any of them lies from a tie of rounding, in
units of the last place (single precision ends on either side of it).

Model: signal-to-noise ratios in dB (999: equal) of the whole model against ONNX Runtime without
optimisations, ours and ONNX Runtime's optimised run; and against the model in double precision
that rounds and saturates nowhere but where the model says, ours and both runs of ONNX Runtime.
"""

import argparse
import sys
from itertools import product
from pathlib import Path

import numpy as np
import onnx

from benchmarks import engines, quantized, zoo
from benchmarks.machine import commit, describe
from benchmarks.quantized_operators import TIE, compare, run_plain
from benchmarks.quantized_oracle import evaluate
from benchmarks.report import (
    RESULTS,
    markdown_machine,
    markdown_table,
    merge_rows,
    write_json,
    write_text,
)
from tilewright.compiler.quantize.post_training import noise
from tilewright.errors import TilewrightError

FORMS, ACTS, WEIGHTS = ("qdq", "qoperator"), ("u8", "s8"), ("channel", "tensor")
_KEYS = ["model", "form", "act", "weights"]


def operators(proto: onnx.ModelProto, feed: dict[str, np.ndarray]) -> dict:
    """Return the counts of the comparison operator by operator."""
    found = compare(proto, feed)
    worst = max(found, key=lambda item: (item.off_greatest, item.from_tie))
    return {
        "operators": len(found),
        "elements": sum(item.elements for item in found),
        "differing": sum(item.differing for item in found),
        "greatest": max(item.greatest for item in found),
        "ort_wrong": sum(item.ort_wrong for item in found),
        "off": sum(item.off for item in found),
        "off_greatest": worst.off_greatest,
        "from_tie": max(item.from_tie for item in found),
        "worst": f"{worst.operator} {worst.tensor}",
    }


def whole_model(path: Path, proto: onnx.ModelProto, feed: dict[str, np.ndarray]) -> dict:
    """Return the signal-to-noise ratios of the whole model."""
    import tilewright

    plain, exact = next(iter(run_plain(proto, feed).values())), evaluate(proto, feed).outputs[0]
    ours = next(iter(tilewright.compile(path, logs=()).run(feed).values()))
    optimised = next(iter(engines.open_onnxruntime(path)(feed).values()))

    def ratio(seen: np.ndarray, wanted: np.ndarray) -> float:
        return min(noise(seen, wanted), 999.0)

    return {
        "ours_db": ratio(ours, plain),
        "ort_db": ratio(optimised, plain),
        "ours_exact_db": ratio(ours, exact),
        "ort_exact_db": ratio(optimised, exact),
        "plain_exact_db": ratio(plain, exact),
    }


def measure(*row: str) -> dict:
    """Return a row of the table."""
    result = dict(zip(_KEYS, row, strict=True)) | {"commit": commit()}
    name, form, act, weights = row
    path = quantized.quantize(name, form, act, weights == "channel")
    proto, feed = onnx.load(path), zoo.inputs(name, 0)
    try:
        return result | operators(proto, feed) | whole_model(path, proto, feed)
    except TilewrightError as error:
        return result | {"error": str(error).replace("|", "/")}


def render(rows: list[dict]) -> str:
    """Return the Markdown page."""
    header = ["model", "operators", "elements", "not ORT's", "greatest", "ORT wrong", "off"]
    header += ["greatest", "from a tie", "SNR to ORT plain: ours, ORT optimised"]
    header += ["SNR to double precision: ours, ORT optimised, plain", "commit"]
    cells = []
    for row in sorted(rows, key=lambda row: [row[key] for key in _KEYS]):
        label = f"{row['model']} {row['form']} {row['act']} per {row['weights']}"
        if "error" in row:
            cells.append([label, f"FAILS: {row['error']}", *[""] * 9, row["commit"]])
            continue
        names = ("operators", "elements", "differing", "greatest", "ort_wrong", "off")
        counts = [str(row[name]) for name in (*names, "off_greatest")]
        to_plain = ", ".join(f"{row[key]:.1f}" for key in ("ours_db", "ort_db"))
        keys = ("ours_exact_db", "ort_exact_db", "plain_exact_db")
        to_exact = ", ".join(f"{row[key]:.1f}" for key in keys)
        cells.append([label, *counts, f"{row['from_tie']:.5f}", to_plain, to_exact, row["commit"]])
    return (
        f"# Agreement of quantized models\n\n{__doc__.split(chr(10), 2)[2]}\n"
        f"{markdown_table(header, cells)}\n{markdown_machine(describe())}"
    )


def _agrees(row: dict) -> bool:
    """Tell whether every operator is within 1, and every difference is a tie."""
    return max(row["greatest"], row["off_greatest"]) <= 1 and row["from_tie"] < TIE


def main() -> int:
    """Compare what the command line names; return 1 where an operator is off by more than one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(quantized.MODELS))
    parser.add_argument("--forms", default=",".join(FORMS))
    parser.add_argument("--acts", default=",".join(ACTS))
    parser.add_argument("--weights", default=",".join(WEIGHTS))
    args = parser.parse_args()
    failed = False
    wanted = (args.models, args.weights, args.forms, args.acts)
    for name, weights, form, act in product(*(said.split(",") for said in wanted)):
        row = measure(name, form, act, weights)
        failed |= "error" in row or not _agrees(row)
        print(row, flush=True)
        data = RESULTS / "quantized_agreement.json"
        merged = merge_rows(data, [row], _KEYS)
        write_json(data, {"machine": describe(), "rows": merged})
        write_text(RESULTS / "quantized_agreement.md", render(merged))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
