"""Compare every model of the zoo with ONNX Runtime: `python -m benchmarks.agreement`.

The measure is the largest error of an output over the standard deviation of ONNX Runtime's, the
worst over all outputs and two inputs. Writes benchmarks/results/agreement.md and .json; rows of
models that are not named stay. Exit code 1 if a model fails or differs by more than the limit.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from benchmarks import engines, zoo
from benchmarks.machine import commit, describe
from benchmarks.report import (
    RESULTS,
    markdown_machine,
    markdown_table,
    merge_rows,
    write_json,
    write_text,
)
from benchmarks.worker import StepError, give_result, run_step

LIMIT = 1e-3
COSINE_LIMIT = 0.99999
SEEDS = (0, 1)


def relative_error(
    reference: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]
) -> tuple[float, float]:
    """Return (largest error / standard deviation of the reference, least cosine) over outputs.

    A missing output, another shape or dtype, or a value that is not finite gives (inf, -1).
    """
    worst, cosine = 0.0, 1.0
    for name, expected in reference.items():
        actual = found.get(name)
        if actual is None or (actual.shape, actual.dtype) != (expected.shape, expected.dtype):
            return float("inf"), -1.0
        a, b = expected.astype(np.float64).ravel(), actual.astype(np.float64).ravel()
        if not np.isfinite(b).all():
            return float("inf"), -1.0
        worst = max(worst, float(np.abs(a - b).max() / a.std()))
        cosine = min(cosine, float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b))))
    return worst, cosine


def compare(name: str, exporter: str, target: str, engine: str) -> dict:
    """Compile one model, run it and ONNX Runtime on `SEEDS`, return the row for the table."""
    path = zoo.load(name, exporter)
    start = time.perf_counter()
    run = _open(engine, path, target)
    seconds = time.perf_counter() - start
    reference = engines.open_onnxruntime(path)
    errors = []
    for seed in SEEDS:
        feed = zoo.inputs(name, seed)
        errors.append(relative_error(reference(feed), run(feed)))
    worst, cosine = max(e for e, _ in errors), min(c for _, c in errors)
    agrees = worst < LIMIT and (name != "minilm" or cosine > COSINE_LIMIT)
    status = "agrees" if agrees else "DIFFERS"
    return {"status": status, "error": worst, "cosine": cosine, "compile_s": seconds}


def _open(engine: str, path: Path, target: str) -> engines.Engine:
    if engine != "tilewright":
        return engines.ENGINES[engine](path)
    import tilewright

    module = tilewright.compile(path, target=target)
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "module.so"
        module.save(saved)
        return engines.open_tilewright(saved)


def _cells(row: dict) -> list[str]:
    label = f"{row['model']} ({row['exporter']})"
    if "error" not in row:
        return [label, row["status"], "", "", "", row["commit"]]
    figures = [f"{row['error']:.1e}", f"{1 - row['cosine']:.1e}", f"{row['compile_s']:.1f}"]
    return [label, row["status"], *figures, row["commit"]]


def render(rows: list[dict], target: str) -> str:
    """Return the Markdown page."""
    header = ["model (exporter)", "status", "largest error / std", "1 - cosine", "compile, s"]
    table = markdown_table([*header, "commit"], [_cells(row) for row in rows])
    return (
        "# Agreement with ONNX Runtime\n\n"
        f"{__doc__.split(chr(10), 2)[2]}\n"
        f"Limit {LIMIT:g}; for MiniLM also cosine > {COSINE_LIMIT}. Target: {target}. Weights are "
        "random, rescaled so that activations keep unit scale, except MiniLM's and its "
        "tokenizer's, which are real.\n\n"
        f"{table}\n{markdown_machine(describe())}"
    )


def _write(rows: list[dict], target: str) -> None:
    data = RESULTS / "agreement.json"
    merged = merge_rows(data, rows, ("model", "exporter"))
    write_json(data, {"target": target, "machine": describe(), "rows": merged})
    write_text(RESULTS / "agreement.md", render(merged, target))


def main() -> int:
    """Compare what the command line names, one process per model; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(zoo.NAMES))
    parser.add_argument("--exporters", default=",".join(zoo.EXPORTERS))
    parser.add_argument("--target", default="native")
    parser.add_argument("--engine", default="tilewright", help="tilewright, onnxruntime, openvino")
    parser.add_argument("--here", action="store_true", help="in this process, with tracebacks")
    args = parser.parse_args()
    rows = []
    for name in args.models.split(","):
        for exporter in args.exporters.split(","):
            row = {"model": name, "exporter": exporter}
            if args.here:
                row |= compare(name, exporter, args.target, args.engine)
                give_result(row)
                continue
            options = ["--target", args.target, "--engine", args.engine, "--here"]
            try:
                command = ["--models", name, "--exporters", exporter, *options]
                row = run_step("benchmarks.agreement", command)
            except StepError as error:
                row["status"] = f"FAILS: {str(error).replace('|', '/')}"
            row["commit"] = commit()
            rows.append(row)
            print("  ".join(_cells(row)), flush=True)
            if args.engine == "tilewright":
                _write(rows, args.target)
    return 0 if all(row["status"] == "agrees" for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
