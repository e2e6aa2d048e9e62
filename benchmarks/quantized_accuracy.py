"""Accuracy of quantized models on real data: `python -m benchmarks.quantized_accuracy`.

Models quantized by `tilewright quantize` on samples that are not judged, run by tilewright:

- digits: `examples/digits_cnn.onnx`, images of 540 held out that are recognised;
- superres: `examples/superres_x2.onnx`, mean PSNR over 16 crops of 4 held-out photographs;
- minilm, also with only its weights in 4 or 8 bits ("W4 g32": groups of 32 with one scale each):
  all-MiniLM-L6-v2 with its real weights on `sentences.txt` (every fourth sentence
  calibrates, the others are judged): cosine to float32, how often the nearest sentence is the same,
  and the rank correlation (Spearman) of all neighbours.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.machine import commit, describe
from benchmarks.report import (
    RESULTS,
    markdown_machine,
    markdown_table,
    merge_rows,
    write_json,
    write_text,
)

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
FOLDER = ROOT / "build" / "quantized"
SENTENCES = Path(__file__).with_name("sentences.txt")
Run = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]
_CALIBRATION_DIGITS = 200


def digits() -> tuple[Path, list[dict], Callable[[Run], dict]]:
    """Return the model, its calibration samples, and what judges a run."""
    sys.path.insert(0, str(EXAMPLES))
    from digits import load_split

    (images, _), (held_out, labels) = load_split()
    samples = [{"image": image[np.newaxis]} for image in images[:_CALIBRATION_DIGITS]]

    def judge(run: Run) -> dict:
        found = [run({"image": image[np.newaxis]})["logits"].argmax() for image in held_out]
        return {"right": int((np.array(found) == labels).sum()), "of": len(labels)}

    return EXAMPLES / "digits_cnn.onnx", samples, judge


def superres() -> tuple[Path, list[dict], Callable[[Run], dict]]:
    """Return the model, its calibration samples, and what judges a run."""
    sys.path.insert(0, str(EXAMPLES))
    from superres import SIZE, TRAINING, held_out, luminance, psnr, shrunk

    samples = []
    for name in TRAINING:
        small = shrunk(luminance(name))
        if min(small.shape) >= SIZE:
            samples.append({"small": small[np.newaxis, np.newaxis, :SIZE, :SIZE].copy()})
    small, large = held_out()

    def judge(run: Run) -> dict:
        found = [run({"small": image[np.newaxis]})["large"][0] for image in small]
        return {"psnr_db": float(np.mean([psnr(f, w) for f, w in zip(found, large, strict=True)]))}

    return EXAMPLES / "superres_x2.onnx", samples, judge


def minilm() -> tuple[Path, list[dict], Callable[[Run], dict]]:
    """Return the model, its calibration samples, and what judges a run."""
    from tokenizers import Tokenizer

    from benchmarks import zoo
    from benchmarks.zoo.catalog import ENTRIES, minilm_folder

    tokenizer = Tokenizer.from_file(str(minilm_folder() / "tokenizer.json"))
    tokenizer.enable_padding(length=ENTRIES["minilm"].tokens)
    feeds = []
    for sentence in SENTENCES.read_text().splitlines():
        encoded = tokenizer.encode(sentence)
        ids, mask = encoded.ids, encoded.attention_mask
        feeds.append({"input_ids": np.array([ids]), "attention_mask": np.array([mask])})
    judged = [feed for place, feed in enumerate(feeds) if place % 4]

    def judge(run: Run) -> dict:
        found = [list(run(feed).values())[-1].reshape(-1) for feed in judged]
        return {"embeddings": np.array(found).tolist()}

    return zoo.load("minilm"), feeds[::4], judge


TASKS = {"digits": digits, "superres": superres, "minilm": minilm}
DEFAULT = "default (minmax)"
SETTINGS: dict[str, dict] = {
    DEFAULT: {},
    "bias": {"bias_correction": True},
    "not smoothed": {"smooth": None},
    "smooth 0.7": {"smooth": 0.7},
    "percentile": {"method": "percentile"},
    "mse": {"method": "mse"},
    "entropy": {"method": "entropy"},
    "dobi": {"method": "dobi"},
    "dobi, bias": {"method": "dobi", "bias_correction": True},
}

# Fewer bits, or floats wherever nothing reads integers; mixtures are in `mixed_precision`.
BITS: dict[str, dict] = {
    "w8a8, compensated": {"bits": "w8a8"},
    "w4a8, nearest": {"bits": "w4a8", "correction": "nearest"},
    "w4a8, clipped": {"bits": "w4a8", "correction": "clipped"},
    "w4a8, compensated": {"bits": "w4a8"},
    "w3a8, compensated": {"bits": "w3a8"},
    "w2a8, compensated": {"bits": "w2a8"},
    "w4a4, compensated": {"bits": "w4a4"},
    "w8a8, dobi, smooth, compensated": {"bits": "w8a8", "method": "dobi", "smooth": 0.5},
    "w4a8, dobi, smooth, compensated": {"bits": "w4a8", "method": "dobi", "smooth": 0.5},
    "w4g32, compensated": {"bits": "w4g32"},
}

# Only weights, in groups; options of `quantize_weights`. "samples" weight the errors.
WEIGHTS: dict[str, dict] = {
    "W4 g32": {"weights": "int4"},
    "W4 g32, samples": {"weights": "int4", "samples": True},
    "W4 g32, zero points, samples": {"weights": "int4", "symmetric": False, "samples": True},
    "W4 g128, samples": {"weights": "int4", "group": 128, "samples": True},
    "W4 or W8 g32 in 8 MB, samples": {"weights": "auto", "max_bytes": 8_000_000, "samples": True},
    "W8 g32": {"weights": "int8"},
}


def neighbours(seen: np.ndarray, wanted: np.ndarray) -> dict:
    """Compare embeddings [sentences, channels] with those in floats."""
    from scipy.stats import spearmanr

    def unit(rows: np.ndarray) -> np.ndarray:
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    seen, wanted = unit(seen), unit(wanted)
    cosine = (seen * wanted).sum(axis=1)
    near, true = seen @ seen.T, wanted @ wanted.T
    others = ~np.eye(len(seen), dtype=bool)
    ranks = [spearmanr(near[i, others[i]], true[i, others[i]])[0] for i in range(len(seen))]
    nearest = [np.where(others, table, -2).argmax(axis=1) for table in (near, true)]
    return {
        "cosine": float(cosine.mean()),
        "least_cosine": float(cosine.min()),
        "nearest": int((nearest[0] == nearest[1]).sum()),
        "of": len(seen),
        "rank_correlation": float(np.mean(ranks)),
    }


def measure(task: str, settings: dict[str, dict]) -> list[dict]:
    """Return the rows of a task: in floats, and for every way of quantizing it."""
    import tilewright
    from tilewright.errors import CompileError
    from tilewright.quantization import quantize
    from tilewright.weight_quantization import quantize_weights

    model, samples, judge = TASKS[task]()
    FOLDER.mkdir(parents=True, exist_ok=True)

    def row(name: str, run: Run) -> dict:
        found = judge(run)
        if "embeddings" in found:
            found = neighbours(np.array(found["embeddings"]), wanted)
        return {"task": task, "setting": name, "commit": commit(), **found}

    plain = tilewright.compile(model, logs=()).run
    wanted = np.array(judge(plain).get("embeddings", ()))
    rows = [row("float32", plain)]
    for name, options in settings.items():
        if task != "minilm" and ("smooth" in options or "weights" in options):
            continue
        out = FOLDER / f"{task}.accuracy.onnx"
        if "weights" in options:
            calibration = samples if options.get("samples") else None
            given = {key: value for key, value in options.items() if key != "samples"}
            quantize_weights(model, out, **given, calibration=calibration)
        else:
            quantize(model, samples, out, **options)
        rows.append(row(name, tilewright.compile(out, logs=()).run))
        if name != DEFAULT:
            continue
        try:
            integers = tilewright.compile(out, logs=(), integer_only=True).run
        except CompileError as error:
            print(f"{task}: {error}")
        else:
            rows.append(row(f"{name}, integer-only", integers))
    return rows


def render(rows: list[dict]) -> str:
    """Return the Markdown page."""
    cells = []
    for row in rows:
        if "right" in row:
            result = f"{row['right']} of {row['of']} right"
        elif "psnr_db" in row:
            result = f"{row['psnr_db']:.3f} dB"
        else:
            result = (
                f"cosine {row['cosine']:.5f} (least {row['least_cosine']:.5f}), nearest "
                f"{row['nearest']} of {row['of']}, rank correlation {row['rank_correlation']:.4f}"
            )
        cells.append([row["task"], row["setting"], result, row["commit"]])
    table = markdown_table(["task", "quantized by", "result", "commit"], cells)
    return (
        f"# Accuracy of quantized models\n\n{__doc__.split(chr(10), 2)[2]}\n"
        f"{table}\n{markdown_machine(describe())}"
    )


def main() -> int:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", default=",".join(TASKS))
    known = SETTINGS | BITS | WEIGHTS
    parser.add_argument("--settings", default=";".join(known), help="separated by semicolons")
    args = parser.parse_args()
    data = RESULTS / "quantized_accuracy.json"
    for task in args.tasks.split(","):
        rows = measure(task, {name: known[name] for name in args.settings.split(";") if name})
        merged = merge_rows(data, rows, ["task", "setting"])
        settings = {"float32", *known, f"{DEFAULT}, integer-only"}
        merged = [row for row in merged if row["setting"] in settings]
        write_json(data, {"machine": describe(), "rows": merged})
        write_text(RESULTS / "quantized_accuracy.md", render(merged))
        for row in rows:
            print(row, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
