"""Measure the model suite and write its table: `python -m benchmarks.models`.

The same as `tilewright bench` on every row of benchmarks/suites/models.json; the result goes to
benchmarks/results/models_<vectors>, as `benchmarks.operators` does. Models are exported on demand.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks import zoo
from benchmarks.operators import add_options, measure_suite
from tilewright.baselines.bench_models import Model, bench_models

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


def model_of(row: dict) -> Model:
    """Return the model of a row and its inputs."""
    feed = feed_of(row)
    return Model(row["name"], path_of(row, feed), feed)


def main() -> int:
    """Measure what the command line names and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="", help="names of rows or models, comma separated")
    add_options(parser)
    args = parser.parse_args()
    wanted = {name for name in args.models.split(",") if name}

    def chosen() -> dict[str, Callable[[], Model]]:
        named = (row for row in rows() if not wanted or wanted & {row["name"], row["model"]})
        return {row["name"]: partial(model_of, row) for row in named}

    return measure_suite(args, "models", chosen, bench_models)


if __name__ == "__main__":
    sys.exit(main())
