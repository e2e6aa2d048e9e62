"""tilewright itself as a contender: as any user gets it, or tuned like the peers that tune."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from tilewright.baselines.budget import Curve, Meter, best_sums, priced, trial_costs
from tilewright.baselines.case import Case
from tilewright.baselines.engine import Contender, Feed, local
from tilewright.baselines.in_network import InNetwork, compile_in_network
from tilewright.baselines.machine import instruction_set
from tilewright.baselines.rounds import take_turns

if TYPE_CHECKING:
    from tilewright.tuner.records import Record

_ROUND_TRIALS = 32
_CHOOSING_ROUNDS = 10


def start(case: Case) -> Contender:
    """Compile a model and load it.

    Without a budget the compiler finds its logs as for any user. With one it tunes from nothing but
    its own log of this case, under `logs`/tilewright, as far as that lacks trials, and compiles by
    it; tuning needs the target "native" or what this machine is. An operator is then the faster of
    the module as any user has it and the one that works in layouts of its own (`in_network`), as
    Ansor is taken.
    """
    from tilewright.api import compile as compile_model
    from tilewright.api import load

    shapes = {key: array.shape for key, array in case.feed.items()}
    if not case.budget.spends:
        compiled = compile_model(case.model, case.target, shapes)
        return local(load(compiled.path, case.threads).run, case.feed)
    log = case.logs / "tilewright" / instruction_set() / f"{case.log_name}.jsonl"
    log.parent.mkdir(parents=True, exist_ok=True)
    _tune(case, shapes, log)
    records, found = _read(log)
    keep = case.budget.within(found)
    notes: dict[str, Any] = {"trials": keep, "curves": {"": found}}
    with tempfile.TemporaryDirectory(prefix="tilewright-") as folder:
        from tilewright.tuner import Log

        first = Path(folder, "first.jsonl")
        Log(first).append(_until(records, keep))
        used = (first,) if keep else ()
        compiled = compile_model(case.model, case.target, shapes, logs=used)
        contender = local(load(compiled.path, case.threads).run, case.feed, notes)
        if case.operator is None:
            return contender
        inside = compile_in_network(case.model, case.target, used, Path(folder))
        if inside is None:
            return contender
        return _faster(contender, _in_network(inside, case.feed, case.threads, notes))


def _in_network(found: InNetwork, feed: Feed, threads: int, notes: dict[str, Any]) -> Contender:
    from tilewright.api import load

    inside = local(
        load(found.path, threads).run, found.bring(feed), {**notes, "layout": found.about}
    )
    return replace(inside, outputs=found.take(inside.outputs))


def _faster(*contenders: Contender) -> Contender:
    """Return the one of two contenders that a few calls in turns find faster."""
    times = take_turns({str(i): each.sample for i, each in enumerate(contenders)}, _CHOOSING_ROUNDS)
    best = min(times, key=lambda name: float(median(times[name])))
    for name, contender in zip(times, contenders, strict=True):
        if name != best:
            contender.close()
    return contenders[int(best)]


def _tune(case: Case, shapes: Any, log: Path) -> None:
    """Tune round by round until the log holds what the budget allows, or nothing is left to try."""
    from tilewright.tuner import tune

    def count() -> int:
        return len(_read(log)[1])

    while left := case.budget.left(count(), sum(trial_costs(log)), _ROUND_TRIALS):
        before, meter = count(), Meter(log, count)
        trials = before + left
        tune(case.model, case.target, shapes, trials=trials, log=log, threads=case.threads)
        meter.note()
        if count() == before:
            break


def _read(log: Path) -> tuple[Sequence[Record], Curve]:
    """Return the records of a log, and for each trial the best time that it led to."""
    from tilewright.tuner import Log

    records = Log(log).read().records
    trials = [record for record in records if _is_trial(record)]
    sums = best_sums([(r.task_key, r.seconds if r.ok else None) for r in trials])
    found = [(s, record.build_time_s) for s, record in zip(sums, trials, strict=True)]
    return records, priced(found, log)


def _is_trial(record: Record) -> bool:
    """Say whether a record is a trial: those of a race measure old candidates again."""
    return not record.hardware.get("raced")


def _until(records: Sequence[Record], trials: int) -> list[Record]:
    """Return the records of so many trials, with the races that were run among and after them."""
    numbers = accumulate(_is_trial(record) for record in records)
    return [r for r, number in zip(records, numbers, strict=True) if number <= trials]
