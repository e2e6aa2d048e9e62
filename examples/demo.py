"""Compile the trained digit classifier and try it on the images held out from its training."""

import os
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
from digits import load_split

import tilewright as tw
from tilewright.runtime.benchmark import compare, interleave, summarize

MODEL = Path("examples/digits_cnn.onnx")
MODULE = Path("build/digits_cnn.so")
ROUNDS = 200


def main() -> int:
    """Run the demo; return 1 if a single image is classified unlike in ONNX Runtime."""
    os.chdir(Path(__file__).resolve().parents[1])
    print(f"compiling {MODEL.name} for this processor ...")
    MODULE.parent.mkdir(exist_ok=True)
    start = time.perf_counter()
    tw.compile(MODEL).save(MODULE)
    size_kib = MODULE.stat().st_size / 1024
    print(f"  {MODULE}: {size_kib:.0f} KiB, {time.perf_counter() - start:.1f} s")

    module = tw.load(MODULE, threads=1)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(MODEL, options, ["CPUExecutionProvider"])
    _, (images, labels) = load_split()
    ours = np.array([module.run({"image": x[None]})["logits"].argmax() for x in images])
    theirs = np.array([session.run(None, {"image": x[None]})[0].argmax() for x in images])
    print(f"classifying {len(labels)} handwritten digits that the network never saw")
    for name, found in (("tilewright", ours), ("onnxruntime", theirs)):
        right = int((found == labels).sum())
        print(f"  {name:12s} {right}/{len(labels)} right ({right / len(labels):.2%})")
    different = int((ours != theirs).sum())
    if different:
        print(f"the two disagree on {different} images: this is a bug, please report it")
        return 1
    print("  both give the same answer on every image")

    feed = {"image": images[:1]}
    times = interleave(
        {"tilewright": lambda: module.run(feed), "onnxruntime": lambda: session.run(None, feed)},
        rounds=ROUNDS,
    )
    print("time for one image on one thread, measured in turns, calls from Python included")
    for name, samples in times.items():
        print(f"  {name:12s} {1e6 * summarize(samples).median_s:.1f} microseconds")
    print(f"  tilewright / onnxruntime: {compare(times['tilewright'], times['onnxruntime'])}")

    command = Path(sys.executable).with_name("tilewright")
    shown = command.relative_to(Path.cwd()) if command.is_relative_to(Path.cwd()) else "tilewright"
    print("next, try")
    print(f"  {shown} inspect {MODULE}")
    print(f"  {shown} run {MODULE} --random")
    print(f"  {shown} bench {MODEL} --against onnxruntime")
    return 0


if __name__ == "__main__":
    sys.exit(main())
