"""What nvcc makes of the operator suite and the models for a GPU, without one.

    python -m benchmarks.cuda_structure [--operators] [--models NAME ...] [--target cuda:sm_90]

Every operator of the suite is compiled in every precision, models in those named (fp32, fp16).
Registers, shared memory and instructions are read from the machine code: tensor cores where they
were asked for, and nothing in local memory. Writes benchmarks/results/cuda_structure.json and .md.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tilewright.api import lower_by
from tilewright.baselines.suite import build_model, load_suite
from tilewright.compiler.codegen import KERNEL_PREFIX
from tilewright.compiler.cuda.build import compile_kernels
from tilewright.compiler.cuda.kernel import Kernel
from tilewright.compiler.cuda.lower import lower_for_cuda
from tilewright.compiler.cuda.structure import CodeUse, read_code
from tilewright.compiler.cuda.targets import CudaTarget, list_cuda_targets, parse_cuda_target

_RESULTS = Path(__file__).parent / "results" / "cuda_structure.json"
_MODELS = Path(__file__).parent.parent / "models"
_PRECISIONS = ("fp32", "tf32", "fp16", "bf16")
_MODEL_PRECISIONS = ("fp32", "fp16")
# Kernels that are compiled by one call of nvcc.
_BATCH = 40


def kernels_of(model: Any, target: CudaTarget, precision: str) -> dict[str, Kernel]:
    """Return the kernels of a model."""
    lowering = partial(lower_for_cuda, target=target, precision=precision)
    return dict(lower_by(lowering, model, None, None, lambda _stage: None)[0].kernels)


def inspect_kernels(kernels: Mapping[str, Kernel], target: CudaTarget) -> dict[str, CodeUse]:
    """Compile kernels, some at a time, and return what each uses."""
    found: dict[str, CodeUse] = {}
    names = sorted(kernels)
    for start in range(0, len(names), _BATCH):
        batch = {name: kernels[name] for name in names[start : start + _BATCH]}
        found |= read_code(compile_kernels(batch, target))
    return found


def describe(name: str, kernel: Kernel, use: CodeUse) -> dict[str, Any]:
    """Return one kernel as a row."""
    wanted = ("HMMA", "HGMMA", "IMMA", "IGMMA", "FFMA", "LDSM", "LDGSTS")
    return {
        "kernel": name,
        "schedule": kernel.schedule,
        "threads": kernel.threads,
        "blocks": kernel.grid[0] * kernel.grid[1] * kernel.grid[2],
        "registers": use.registers,
        "shared_bytes": kernel.shared_bytes,
        "stack_bytes": use.stack_bytes,
        "local_instructions": use.spills,
        **{key: use.instructions.get(key, 0) for key in wanted},
    }


def on_tensor_cores(row: Mapping[str, Any]) -> bool:
    """Tell whether a kernel has matrix instructions."""
    return any(row.get(name) for name in ("HMMA", "HGMMA", "IMMA", "IGMMA"))


_ON_HMMA = ("tf32", "fp16", "bf16")


def faults(row: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with a kernel; empty where nothing is."""
    found = []
    schedule = str(row["schedule"])
    if row["local_instructions"] or row["stack_bytes"]:
        found.append(f"{row['local_instructions']} accesses of local memory")
    kind, unit, *_ = [*schedule.split(), "", ""]
    letter = "G" if "by warpgroups" in schedule else ""
    if kind in ("gemm", "attention") and unit in _ON_HMMA and not row[f"H{letter}MMA"]:
        found.append(f"no H{letter}MMA")
    if schedule.startswith("gemm int8") and not row[f"I{letter}MMA"]:
        found.append(f"no I{letter}MMA")
    if "copy" in schedule and not row["LDGSTS"]:
        found.append("no background copy")
    if row["threads"] < 32:
        found.append("less than a warp")
    return found


def check_operators(target: CudaTarget) -> list[dict[str, Any]]:
    """Compile every operator of the suite in every precision."""
    rows = []
    for precision in _PRECISIONS:
        kernels: dict[str, Kernel] = {}
        owners: dict[str, str] = {}
        for operator in load_suite("alt"):
            for name, kernel in kernels_of(build_model(operator), target, precision).items():
                prefix = f"{operator.id.replace('-', '_')}_{KERNEL_PREFIX}"
                unique = name.replace(KERNEL_PREFIX, prefix)
                # The functions of joined launches, too.
                source = kernel.source.replace(KERNEL_PREFIX, prefix)
                kernels[unique] = replace(kernel, name=unique, source=source)
                owners[unique] = operator.id
        used = inspect_kernels(kernels, target)
        for name, kernel in kernels.items():
            row = describe(name, kernel, used[name])
            rows.append({"operator": owners[name], "precision": precision, **row})
        print(f"{precision}: {len(kernels)} kernels", file=sys.stderr, flush=True)
    return rows


def check_models(
    names: Sequence[str], precisions: Sequence[str], target: CudaTarget
) -> list[dict[str, Any]]:
    """Compile models; return a row for each and precision."""
    rows = []
    for name in names:
        for precision in precisions:
            start = time.perf_counter()
            kernels = kernels_of(_MODELS / f"{name}.onnx", target, precision)
            used = inspect_kernels(kernels, target)
            seconds = time.perf_counter() - start
            described = [describe(k, kernel, used[k]) for k, kernel in kernels.items()]
            wrong = {row["kernel"]: faults(row) for row in described if faults(row)}
            rows.append(
                {
                    "model": name,
                    "precision": precision,
                    "kernels": len(kernels),
                    "on_tensor_cores": sum(map(on_tensor_cores, described)),
                    "most_registers": max(row["registers"] for row in described),
                    "faults": wrong,
                    "seconds": round(seconds, 1),
                }
            )
            print(f"{name} {precision}: {rows[-1]}", file=sys.stderr, flush=True)
    return rows


def write(results: Mapping[str, Any], path: Path) -> None:
    """Write results as JSON, and a table for people beside it."""
    path.write_text(json.dumps(results, indent=1) + "\n")
    lines = [
        f"# Machine code for {results['target']}, read without a GPU",
        "",
        "`python -m benchmarks.cuda_structure`; times on a GPU are not in here.",
        "",
    ]
    operators = results.get("operators", [])
    if operators:
        lines += [
            "| precision | operators | kernels | on tensor cores | most registers | local memory |",
            "| --- | --: | --: | --: | --: | --: |",
        ]
        for precision in _PRECISIONS:
            rows = [row for row in operators if row["precision"] == precision]
            lines.append(
                f"| {precision} | {len({row['operator'] for row in rows})} | {len(rows)} | "
                f"{sum(map(on_tensor_cores, rows))} | "
                f"{max(row['registers'] for row in rows)} | "
                f"{sum(bool(row['local_instructions']) for row in rows)} |"
            )
        wrong = [(row, faults(row)) for row in operators if faults(row)]
        lines += ["", f"Kernels with a fault: {len(wrong)}.", ""]
        lines += [f"- {row['kernel']} ({row['schedule']}): {', '.join(f)}" for row, f in wrong]
    if results.get("models"):
        lines += [
            "",
            "| model | precision | kernels | on tensor cores | most registers | faults | seconds |",
            "| --- | --- | --: | --: | --: | --: | --: |",
        ]
        lines += [
            f"| {row['model']} | {row['precision']} | {row['kernels']} | {row['on_tensor_cores']} "
            f"| {row['most_registers']} | {len(row['faults'])} | {row['seconds']} |"
            for row in results["models"]
        ]
    path.with_suffix(".md").write_text("\n".join(lines) + "\n")


def main() -> None:
    """Run from the command line; what is not asked for is kept from the last results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="cuda:sm_90", choices=list_cuda_targets())
    parser.add_argument("--operators", action="store_true")
    parser.add_argument("--models", nargs="*", default=[])
    parser.add_argument("--precisions", nargs="+", default=_MODEL_PRECISIONS, choices=_PRECISIONS)
    parser.add_argument("-o", "--output", type=Path, default=_RESULTS)
    args = parser.parse_args()
    target = parse_cuda_target(args.target)
    results: dict[str, Any] = {"target": args.target}
    if args.output.exists():
        results |= json.loads(args.output.read_text())
    if args.operators:
        results["operators"] = check_operators(target)
        write(results, args.output)
    for name in args.models:
        made = check_models([name], args.precisions, target)
        new = {(row["model"], row["precision"]): row for row in made}
        old = {(row["model"], row["precision"]): row for row in results.get("models", [])}
        results["models"] = [row for _, row in sorted((old | new).items())]
        write(results, args.output)


if __name__ == "__main__":
    main()
