"""Measure the operator suite in tilewright and its peers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from tilewright.baselines.case import Case
from tilewright.baselines.contest import Contest, Entry, Options
from tilewright.baselines.suite import Operator, build_model

_SEED = 0


def bench_operators(
    operators: Sequence[Operator],
    options: Options | None = None,
    progress: Callable[[str], None] = lambda _stage: None,
    finished: Callable[[dict[str, Any]], None] = lambda _result: None,
    together: int = 1,
) -> dict[str, Any]:
    """Measure operators in tilewright and its peers, which take turns in one process.

    Ansor answers from a process of its own, in the same turns.

    Args:
        operators: rows of the suite.
        options: peers and method.
        progress: called with what is going on.
        finished: called with the result so far after every group of rows.
        together: rows in a group, which is timed under one lock.

    Returns:
        The result as plain data, see `contest.Contest`; a row has "operator", "engines" (times, and
        for peers the ratio of their time to ours round by round), "failed" (engine -> why), and
        what the machine gave meanwhile.
    """
    options = options or Options()
    contest = Contest("operators", options)
    for start in range(0, len(operators), together):
        group = operators[start : start + together]
        contest.time([_enter(contest, operator, progress) for operator in group])
        finished(contest.result)
    return contest.result


def _enter(contest: Contest, operator: Operator, progress: Callable[[str], None]) -> Entry:
    options = contest.options
    with tempfile.TemporaryDirectory(prefix="tilewright-") as folder:
        model = Path(folder) / f"{operator.name}.onnx"
        onnx.save(build_model(operator), model)
        rng = np.random.default_rng(_SEED)
        case = Case(
            model,
            {"data": rng.standard_normal(operator.data_shape, np.float32)},
            options.threads,
            operator,
            options.budget,
            options.logs,
            options.target,
            lambda stage: progress(f"{operator.name}: {stage}"),
        )
        about = {"name": operator.name, "operator": operator.to_json(), "flops": operator.flops}
        return contest.enter(case, about, operator.flops)
