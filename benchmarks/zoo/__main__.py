"""Export models: `python -m benchmarks.zoo [--models a,b] [--exporters torchscript,dynamo]`."""

import argparse
import time

from benchmarks import zoo
from benchmarks.zoo.export import verify


def main() -> None:
    """Export what is missing, verify everything, print one line per file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=",".join(zoo.NAMES))
    parser.add_argument("--exporters", default=",".join(zoo.EXPORTERS))
    args = parser.parse_args()
    for exporter in args.exporters.split(","):
        for name in args.models.split(","):
            start = time.perf_counter()
            path = zoo.load(name, exporter)
            change, deviation = verify(name, path)
            size_mb, seconds = path.stat().st_size / 1e6, time.perf_counter() - start
            print(f"{path.name:28s} {size_mb:7.1f} MB  {seconds:5.1f} s", end="  ")
            print(f"change {change:.2f}  deviation {deviation:.2f}", flush=True)


if __name__ == "__main__":
    main()
