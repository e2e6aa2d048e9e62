"""Bits chosen for each layer, beside int8: `python -m benchmarks.mixed_precision`.

For each task of `benchmarks.quantized_accuracy` the model in floats, in int8 (`--bits 8`, and for
MiniLM with its best options), in W4A8, and in two mixtures of fp32, W8A8, W4A8 and W4 in groups of
32 that keep a bound on the drop of the outputs (`--bits auto --max-drop`): the fastest, and
the smallest. The bound is judged by `tilewright quantize` on calibration samples left out of
fitting; the result is judged here, on the data of the task. Predicted is the time that the integer
program expects of its plan, from layers that were timed before in models of one precision; measured
is the median of calls on one thread, all models in turns. Size is that of the ONNX file and of the
module's weights.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.machine import commit, describe
from benchmarks.quantized_accuracy import TASKS, neighbours
from benchmarks.report import (
    RESULTS,
    markdown_machine,
    markdown_table,
    merge_rows,
    write_json,
    write_text,
)
from benchmarks.worker import ROOT
from tilewright.baselines.machine import instruction_set
from tilewright.compiler.quantize.bit_plan import parse_bits
from tilewright.mixed_precision.choice import Goal
from tilewright.mixed_precision.latency import LayerTime
from tilewright.mixed_precision.quantizing import (
    measure_costs,
    measure_times,
    quantize_for,
    quantize_uniformly,
)
from tilewright.mixed_precision.subject import Settings, Subject

FOLDER = ROOT / "build" / "quantized"
# Near what is asked of the task: 8 of 540 digits, 0.4 dB, a cosine of 0.98. The four sentences that
# judge for MiniLM overstate its cosine (0.981 there was 0.975 over all), so 0.986 is asked of them.
BOUNDS = {"digits": ("error", 0.01), "superres": ("error", 5e-4), "minilm": ("cosine", 0.014)}
INT8 = {"digits": {}, "superres": {}, "minilm": {"method": "dobi", "smooth": 0.5}}
STEPS = ("times", "uniform", "fastest", "smallest", "measure")
_CALIBRATION_SAMPLES = 60
# A limit that no plan reaches: layers are timed, and the size alone decides.
_ANY_TIME_S = 100.0


def files_of(task: str) -> dict[str, Path]:
    """Return where the models of a task lie."""
    names = ("int8", "w4a8", "mixed, fastest", "mixed, smallest")
    made = {name: FOLDER / f"{task}.{name.replace(', ', '-')}.onnx" for name in names}
    return {"float32": Path(TASKS[task]()[0]), **made}


def goals_of(task: str) -> dict[str, Goal]:
    """Return what the mixtures have to keep."""
    metric, bound = BOUNDS[task]
    return {
        "mixed, fastest": Goal(bound, metric=metric),
        "mixed, smallest": Goal(bound, _ANY_TIME_S, metric=metric, prefer="bytes"),
    }


def subject_of(task: str) -> Subject:
    """Return the model of a task with its calibration samples."""
    from tilewright.quantization import prepare
    from tilewright.reference import load_proto

    model, samples, _ = TASKS[task]()
    samples = samples[:_CALIBRATION_SAMPLES]
    proto = load_proto(Path(model))
    if "smooth" in INT8[task]:
        proto = prepare(proto, samples, "native", None, INT8[task]["smooth"], False)
    settings = Settings(INT8[task].get("method", "minmax"))
    return Subject(proto, samples, settings, partial(print, file=sys.stderr))


def time_layers(task: str) -> None:
    """Measure every layer in every candidate, for the integer program."""
    times = measure_times(subject_of(task), goals_of(task)["mixed, fastest"])
    rows = [[name, bits.name, t.seconds, t.origin] for (name, bits), t in times.items()]
    write_json(FOLDER / f"{task}.times.json", {"rows": rows})


def write_uniform(task: str) -> None:
    """Quantize a task's model to int8 and W4A8."""
    import onnx

    from tilewright.quantization import quantize

    model, samples, _ = TASKS[task]()
    files = files_of(task)
    quantize(model, samples[:_CALIBRATION_SAMPLES], files["int8"], **INT8[task])
    onnx.save(quantize_uniformly(subject_of(task), parse_bits("w4a8")).proto, files["w4a8"])


def write_mixed(task: str, names: Sequence[str]) -> None:
    """Choose the mixtures that are named, and note what they are predicted to take."""
    import onnx

    files, subject = files_of(task), subject_of(task)
    timed = json.loads((FOLDER / f"{task}.times.json").read_text())["rows"]
    times = {(n, parse_bits(b)): LayerTime(seconds, origin) for n, b, seconds, origin in timed}
    costs = measure_costs(subject, goals_of(task)["mixed, fastest"], times)
    notes = FOLDER / f"{task}.predicted.json"
    predicted = json.loads(notes.read_text()) if notes.exists() else {}
    for name in names:
        goal = goals_of(task)[name]
        outcome = quantize_for(subject, goal, costs)
        onnx.save(outcome.proto, files[name])
        report = outcome.report
        predicted[name] = {key: report[key] for key in ("predicted_s", "bits", "drop")}
        print(name, predicted[name], file=sys.stderr)
        drawing = RESULTS / f"mixed_precision_{task}_{name.split(', ')[1]}.svg"
        write_text(drawing, outcome.drawing or "")
        write_json(notes, predicted)


def measure(task: str, rounds: int) -> list[dict]:
    """Return the rows of a task: of all its models that are written."""
    import tilewright
    from tilewright.runtime.benchmark import compare, interleave, summarize

    _, samples, judge = TASKS[task]()
    files = {name: path for name, path in files_of(task).items() if path.exists()}
    predicted = json.loads((FOLDER / f"{task}.predicted.json").read_text())
    modules = {name: tilewright.compile(path) for name, path in files.items()}
    times = interleave(
        {n: partial(m.module.run, samples[0]) for n, m in modules.items()}, rounds=rounds
    )
    rows, wanted = [], np.array([])
    for name, module in modules.items():
        found = judge(module.run)
        if "embeddings" in found:
            embeddings = np.array(found["embeddings"])
            wanted = embeddings if name == "float32" else wanted
            found = neighbours(embeddings, wanted)
        ratio = compare(times[name], times["int8"])
        row = {
            "task": task,
            "setting": name,
            "median_s": summarize(times[name]).median_s,
            "to_int8": [ratio.median, ratio.low, ratio.high],
            "onnx_bytes": files[name].stat().st_size,
            "module_bytes": int(module.description["weights_bytes"]),
            "predicted_s": predicted.get(name, {}).get("predicted_s"),
            "layers": predicted.get(name, {}).get("bits"),
            "commit": commit(),
            **found,
        }
        rows.append(row)
    return rows


def render(rows: list[dict]) -> str:
    """Return the Markdown page."""
    header = ["task", "model", "result", "measured", "time / int8's [95%]", "predicted"]
    header += ["predicted / measured", "ONNX file, kB", "module's weights, kB", "commit"]
    cells = []
    for row in rows:
        low, high = row["to_int8"][1:]
        expected = row["predicted_s"]
        cells.append(
            [
                *(row["task"], _named(row), _result(row), f"{1e6 * row['median_s']:.1f} us"),
                f"{row['to_int8'][0]:.2f} [{low:.2f} .. {high:.2f}]",
                "" if expected is None else f"{1e6 * expected:.1f} us",
                "" if expected is None else f"{expected / row['median_s']:.2f}",
                *(f"{row[key] / 1e3:,.0f}" for key in ("onnx_bytes", "module_bytes")),
                row["commit"],
            ]
        )
    return (
        f"# Mixed precision\n\n{__doc__.split(chr(10), 2)[2]}\n"
        f"{markdown_table(header, cells)}\n{markdown_machine(describe())}"
    )


def _named(row: dict) -> str:
    mixed = ", ".join(f"{count} {name}" for name, count in (row["layers"] or {}).items())
    return f"{row['setting']}: {mixed}" if mixed else str(row["setting"])


def _result(row: dict) -> str:
    if "right" in row:
        return f"{row['right']} of {row['of']} right"
    if "psnr_db" in row:
        return f"{row['psnr_db']:.2f} dB"
    return f"cosine {row['cosine']:.4f} (least {row['least_cosine']:.4f})"


def main() -> int:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--steps", default=",".join(STEPS), help="some of them, in order")
    args = parser.parse_args()
    stem = RESULTS / f"mixed_precision_{instruction_set()}"
    steps = args.steps.split(",")
    for task in args.tasks.split(","):
        FOLDER.mkdir(parents=True, exist_ok=True)
        if "times" in steps:
            time_layers(task)
        if "uniform" in steps:
            write_uniform(task)
        mixtures = [f"mixed, {kind}" for kind in ("fastest", "smallest") if kind in steps]
        if mixtures:
            write_mixed(task, mixtures)
        if "measure" not in steps:
            continue
        rows = measure(task, args.rounds)
        merged = merge_rows(stem.with_suffix(".json"), rows, ["task", "setting"])
        write_json(stem.with_suffix(".json"), {"machine": describe(), "rows": merged})
        write_text(stem.with_suffix(".md"), render(merged))
        for row in rows:
            print(row, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
