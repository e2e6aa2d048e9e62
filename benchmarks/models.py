"""Measure the model suite and write its table: `python -m benchmarks.models`.

The same as `tilewright bench` on every row of benchmarks/suites/models.json; the result goes to
benchmarks/results/models_<vectors>, as `benchmarks.operators` does. Models are exported on demand.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks import zoo
from benchmarks.operators import (
    add_options,
    is_done,
    keep,
    options_of,
    result_path,
    write_tables,
)
from tilewright.baselines.bench_models import Model, bench_models
from tilewright.errors import TilewrightError

SUITE = Path(__file__).with_name("suites") / "models.json"


def rows() -> list[dict]:
    """Return the rows of the suite: name, model, batch, and size where it is not the zoo's."""
    return json.loads(SUITE.read_text())["models"]


def feed_of(row: dict) -> dict[str, np.ndarray]:
    """Return the inputs of a row: one sample a seed, images repeated up to their size."""
    samples = [zoo.inputs(row["model"], seed) for seed in range(row.get("batch", 1))]
    feed = {name: np.concatenate([sample[name] for sample in samples]) for name in samples[0]}
    if "size" in row:
        for name, array in feed.items():
            repeats = np.floor_divide(row["size"], array.shape[2:])
            feed[name] = np.tile(array, (1, 1, *repeats))
    return feed


def path_of(row: dict, feed: dict[str, np.ndarray]) -> Path:
    """Return the ONNX file of a row, exported first where there is none."""
    standard = zoo.load(row["model"])
    if {name: a.shape for name, a in feed.items()} == {
        name: a.shape for name, a in zoo.inputs(row["model"], 0).items()
    }:
        return standard
    path = standard.with_name(f"{row['name']}.onnx")
    if not path.exists():
        import torch

        from benchmarks.zoo.builders import build
        from benchmarks.zoo.export import export_model

        built = build(row["model"])
        arguments = tuple(torch.from_numpy(feed[name]) for name in built.input_names)
        temporary = path.with_suffix(".part")
        export_model(replace(built, args=arguments), "torchscript", temporary)
        temporary.replace(path)
    return path


def main() -> int:
    """Measure what the command line names and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="", help="names of rows or models, comma separated")
    add_options(parser)
    args = parser.parse_args()
    wanted = [name for name in args.models.split(",") if name]
    try:
        options = options_of(args)
        path = result_path(args.name or "models", args.threads, options.budget)
        old = json.loads(path.read_text()) if path.exists() else None
        end = time.monotonic() + args.stop_after
        for row in rows():
            if wanted and row["name"] not in wanted and row["model"] not in wanted:
                continue
            if time.monotonic() > end or (
                args.resume and is_done(old, row["name"], options.against)
            ):
                continue
            feed = feed_of(row)
            model = Model(row["name"], path_of(row, feed), feed)
            keep(path, bench_models([model], options))
        write_tables(path)
    except (TilewrightError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
