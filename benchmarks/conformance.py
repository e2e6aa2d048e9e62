"""Run ONNX's backend test suite: `python -m benchmarks.conformance`.

Every case is compiled to a module file and run from it; what passes is run again on the same
module with fresh random data against `onnx.reference`. Writes benchmarks/results/conformance.json
and docs/onnx-support.md; `--update-baseline` also writes the list of node cases that may never
fail again. Exit code 1 if a case of that list fails.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx
from onnx.backend.test.case.test_case import TestCase

from benchmarks.suite import KINDS, Outcome, load_cases, run_cases

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "conformance.json"
DOCS = ROOT / "docs" / "onnx-support.md"
BASELINE = ROOT / "tests" / "frontends" / "onnx" / "node_tests_passing.txt"

_SAVED_EVERY = 20
_EXPANDED = re.compile(r"_expanded(_ver\d+)?$")
_CONTROL_AND_SIZES = """\
If, Loop and Scan that are decided when compiling leave no trace. Others, and long loops, are
control flow in the module, with bodies planned into one arena. Branches may differ in size; what a
loop carries may not change its shape; scan outputs need a number of iterations, or a bound of it,
that is known when compiling.

Integer division by zero gives 0, as in numpy. An index that is known when compiling must be in
range; one that comes from the data never reads or writes outside its tensor.

A size that depends on data (of NonZero, Compress, Unique, NonMaxSuppression, and of what follows
them, branches and loops) has an upper bound, up to which is computed; what lies beyond does not
count. An output of this kind is cut to its actual size by the Python runtime; callers from C get
the upper bound, and a further output `name.extents`. Inside a model, these operators take such
tensors, others refuse them by name:
"""
# Why cases fail, where the message of the failure does not say it: (pattern of names, reason).
_REASONS = (
    ("image_decoder", "Image files are not decoded; do that before calling the model."),
    ("bernoulli", "The expected data come from numpy's random numbers; ours are others."),
    ("training_dropout", "Random masks of training are not drawn; export for inference."),
    (
        "dft_inverse",
        "The expected data hold the rounding errors of another algorithm (1e-7 for 0).",
    ),
    ("attention.*fp16", "Two of 192 float16 elements are 0.0005 off."),
    ("loop16_seq_none", "The result is right, but the suite cannot compare a scalar in a list."),
)


@dataclass
class OperatorRow:
    """What the suite says of one operator."""

    opsets: set[int] = field(default_factory=set)
    types: set[str] = field(default_factory=set)
    passed: int = 0
    total: int = 0


def operator_of(case: TestCase, cases: Mapping[str, TestCase]) -> str:
    """Return the operator that a case is about; an expanded case is about the one expanded."""
    original = cases.get(_EXPANDED.sub("", case.name), case)
    names = list(dict.fromkeys(_qualified(node) for node in original.model.graph.node))
    return names[0] if len(names) == 1 else "several operators"


def _qualified(node: onnx.NodeProto) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type


def types_of(case: TestCase) -> set[str]:
    """Return the element types of the inputs and outputs of a case."""
    found = set()
    for item in (*case.model.graph.input, *case.model.graph.output):
        type_ = item.type
        while type_.WhichOneof("value") in ("sequence_type", "optional_type"):
            type_ = getattr(type_, type_.WhichOneof("value")).elem_type
        if type_.tensor_type.elem_type:
            name = onnx.TensorProto.DataType.Name(type_.tensor_type.elem_type)
            found.add(name.lower())
    return found


def operator_rows(
    cases: Mapping[str, TestCase], outcomes: Mapping[str, Outcome]
) -> dict[str, OperatorRow]:
    """Count the node cases by operator; opsets and types are those of passing cases."""
    rows: dict[str, OperatorRow] = defaultdict(OperatorRow)
    for name, outcome in outcomes.items():
        row = rows[operator_of(cases[name], cases)]
        row.total += 1
        if outcome.status == "pass":
            row.passed += 1
            row.types |= types_of(cases[name])
            row.opsets |= _opsets(cases[name])
    return dict(sorted(rows.items()))


def _opsets(case: TestCase) -> set[int]:
    domains = {node.domain for node in case.model.graph.node}
    return {item.version for item in case.model.opset_import if item.domain in domains}


def failures_by_reason(
    cases: Mapping[str, TestCase], outcomes: Mapping[str, Outcome]
) -> dict[str, list[str]]:
    """Group the cases that fail by what is to be said of them, the largest group first."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name, outcome in outcomes.items():
        if outcome.status != "pass":
            groups[_explain(cases[name], outcome)].append(name)
    return dict(sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])))


def _explain(case: TestCase, outcome: Outcome) -> str:
    if "string" in types_of(case):
        return "Strings: tensors of text are not compiled."
    if outcome.status != "fail":
        return f"{outcome.status}: {outcome.reason}."
    for pattern, reason in _REASONS:
        if re.search(pattern, case.name):
            return reason
    text = re.sub(r"node '[^']*'", "node", outcome.reason)
    text = re.sub(r" x\d+: no converter for node.*", " has no converter", text)
    return f"{text.replace('this model is not supported: ', '').rstrip('.')}."


def write_docs(results: Mapping[str, Mapping[str, Outcome]]) -> None:
    """Write docs/onnx-support.md from the outcomes by kind."""
    from tilewright.frontends.onnx.registry import bounded_operators

    cases = load_cases("node")
    node = results["node"]
    lines = [
        "# What of ONNX is supported",
        "",
        f"Written by `python -m benchmarks.conformance` with onnx {onnx.__version__}; do not edit.",
        "Each case of ONNX's own test suite is compiled to a module file and run from it, with the",
        "suite's tolerances. Inputs that decide shapes (the shape of a Reshape, the `k` of a TopK)",
        "are compiled in; `compile --constant name=value` does the same. Everything else stays a",
        "run-time input.",
        "",
        *_CONTROL_AND_SIZES.splitlines(),
        f"{', '.join(bounded_operators())}.",
        "",
        "Types below one byte take one byte per element at the interface, as in `ml_dtypes`. A",
        "sequence is one input or output per element: `name[0]`, `name[1]`, ...",
        "",
        "| kind of case | passed | of | right on fresh random data too | nothing to compare |",
        "|---|---|---|---|---|",
        *(_kind_line(kind, results[kind]) for kind in results),
        "",
        "Fresh data: a case that passes is run again, on the same module, with random inputs and",
        "compared with `onnx.reference`, where that computes the case itself correctly.",
        *_fresh_failures(node),
        "",
        "## Operators",
        "",
        "Opsets and types are those of the cases that pass; an operator is converted from opset 7",
        "on where its meaning did not change. `several operators`: models of more than one node.",
        "",
        "| operator | opsets | types | passed / of |",
        "|---|---|---|---|",
        *(_operator_line(name, row) for name, row in operator_rows(cases, node).items()),
        "",
        "## Operators of other domains",
        "",
        "Converted, and tested apart from ONNX's suite:",
        "",
        *_other_domains(),
        "",
        "## What fails, and why",
        "",
    ]
    for reason, names in failures_by_reason(cases, node).items():
        shown = ", ".join(f"`{name}`" for name in names)
        lines.append(f"- **{len(names)}** {reason} {shown}")
    for kind, outcomes in results.items():
        failed = [name for name, outcome in outcomes.items() if outcome.status != "pass"]
        if kind != "node" and failed:
            lines.append(f"- **{len(failed)}** of kind {kind}:")
            lines += [f"  - `{name}`: {outcomes[name].reason[:160]}" for name in failed]
    DOCS.parent.mkdir(exist_ok=True)
    DOCS.write_text("\n".join(lines) + "\n")


def _other_domains() -> list[str]:
    """List the operators that have a converter, but no case in ONNX's suite."""
    from tilewright.frontends.onnx.registry import registered_operators

    names = [f"{domain}.{name}" for domain, name in registered_operators() if "." in domain]
    names = [name for name in names if not name.startswith("ai.onnx")]
    return [f"- `{name}`" for name in names]


def _kind_line(kind: str, outcomes: Mapping[str, Outcome]) -> str:
    passed = [outcome for outcome in outcomes.values() if outcome.status == "pass"]
    fresh = Counter(outcome.fresh for outcome in passed)
    return f"| {kind} | {len(passed)} | {len(outcomes)} | {fresh['pass']} | {fresh['none']} |"


def _fresh_failures(outcomes: Mapping[str, Outcome]) -> list[str]:
    names = [name for name, outcome in outcomes.items() if outcome.fresh == "fail"]
    if not names:
        return ["None of the node cases differs there."]
    return [f"{len(names)} node cases differ there: {', '.join(f'`{name}`' for name in names)}."]


def _operator_line(name: str, row: OperatorRow) -> str:
    opsets = ", ".join(map(str, sorted(row.opsets)))
    return f"| {name} | {opsets} | {', '.join(sorted(row.types))} | {row.passed} / {row.total} |"


def write_results(results: Mapping[str, Mapping[str, Outcome]], seconds: float) -> None:
    """Write benchmarks/results/conformance.json: one line per case."""
    lines = ["{", f' "onnx": "{onnx.__version__}",', f' "seconds": {seconds:.0f},', ' "cases": {']
    for kind, outcomes in results.items():
        lines.append(f'  "{kind}": {{')
        rows = [
            f"   {json.dumps(name)}: {json.dumps(outcome.to_json())}"
            for name, outcome in outcomes.items()
        ]
        lines += [",\n".join(rows), "  }" + ("," if kind != list(results)[-1] else "")]
    lines += [" }", "}"]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("\n".join(lines) + "\n")


def read_results() -> dict[str, dict[str, Outcome]]:
    """Read what the last run wrote; empty where there is none."""
    if not RESULTS.exists():
        return {}
    kinds = json.loads(RESULTS.read_text())["cases"]
    return {
        kind: {name: Outcome(**fields) for name, fields in cases.items()}
        for kind, cases in kinds.items()
    }


def read_baseline() -> list[str]:
    """Return the node cases that may not fail."""
    return BASELINE.read_text().split()


def _run(args: argparse.Namespace) -> dict[str, dict[str, Outcome]]:
    results = read_results() if args.cases or args.resume else {}
    for kind in args.kinds.split(","):
        cases = load_cases(kind)
        known = results.setdefault(kind, {})
        chosen = {
            name: case
            for name, case in cases.items()
            if re.search(args.cases, name) and not (args.resume and name in known)
        }
        done: list[str] = []

        def show(
            name: str,
            outcome: Outcome,
            total: int = len(chosen),
            done: list = done,
            known: dict = known,
        ) -> None:
            done.append(name)
            known[name] = outcome
            if len(done) % _SAVED_EVERY == 0:
                write_results(results, 0)
            if outcome.status != "pass" or outcome.fresh == "fail" or args.verbose:
                reason = outcome.reason or outcome.fresh_reason
                print(f"{len(done)}/{total} {name}: {outcome.status} {reason}", flush=True)

        outcomes = run_cases(chosen, workers=args.workers, on_outcome=show)
        known.update(outcomes)
        results[kind] = {name: known[name] for name in cases if name in known}
    return results


def _regressions(outcomes: Mapping[str, Outcome], baseline: Iterable[str]) -> Sequence[str]:
    return [name for name in baseline if name in outcomes and outcomes[name].status != "pass"]


def check_baseline(every: int, workers: int) -> dict[str, Outcome]:
    """Run every n-th case of the baseline, on the suite's own data only."""
    cases = load_cases("node")
    chosen = {name: cases[name] for name in read_baseline()[::every]}
    return run_cases(chosen, workers=workers, fresh=False)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--cases", default="", help="regular expression; other results stay")
    parser.add_argument("--resume", action="store_true", help="go on where a run was stopped")
    parser.add_argument("--workers", type=int, default=max(1, len(os.sched_getaffinity(0))))
    parser.add_argument("--verbose", action="store_true", help="print every case")
    parser.add_argument("--update-baseline", action="store_true")
    parser.add_argument(
        "--check-every", type=int, metavar="N", help="run every N-th case of the baseline, only"
    )
    parser.add_argument("--out", type=Path, help="with --check-every: JSON file for the outcomes")
    return parser.parse_args()


def main() -> int:
    """Run what the command line names; return the exit code."""
    args = _arguments()
    if args.check_every:
        outcomes = check_baseline(args.check_every, args.workers)
        if args.out:
            texts = {name: outcome.to_json() for name, outcome in outcomes.items()}
            args.out.write_text(json.dumps(texts))
        return _report(outcomes, _regressions(outcomes, read_baseline()))
    start = time.perf_counter()
    results = _run(args)
    regressions = _regressions(results.get("node", {}), read_baseline())
    write_results(results, time.perf_counter() - start)
    if "node" in results:
        write_docs(results)
    for kind, outcomes in results.items():
        print(_kind_line(kind, outcomes))
    if args.update_baseline:
        passing = [n for n, outcome in results["node"].items() if outcome.status == "pass"]
        BASELINE.write_text("\n".join(passing) + "\n")
        return 0
    return _report(results.get("node", {}), regressions)


def _report(outcomes: Mapping[str, Outcome], regressions: Sequence[str]) -> int:
    for name in regressions:
        print(f"regression: {name}: {outcomes[name].reason}", file=sys.stderr)
    return 1 if regressions else 0


if __name__ == "__main__":
    sys.exit(main())
