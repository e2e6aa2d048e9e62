"""Damaged models: none may crash the process, hang, or end in a traceback."""

import os
import signal
import time

import numpy as np
import onnx
import pytest

from benchmarks.forked import Lost, run_forked
from benchmarks.mutations import __main__ as mutations
from benchmarks.mutations.models import MODELS
from benchmarks.mutations.trial import BAD, RAN, REFUSED, damaged, run_trial

PER_MODEL = 500
# The first of the 5,000 that `python -m benchmarks.mutations` runs.
FEW = mutations.trial_names(20)


def test_a_seed_damages_a_model_always_the_same_way():
    assert damaged("shapes/7") == damaged("shapes/7") != damaged("shapes/8")
    assert damaged("shapes/0") == MODELS["shapes"]().SerializeToString()


@pytest.mark.parametrize("model", MODELS)
def test_undamaged_models_are_valid_and_run(model):
    onnx.checker.check_model(MODELS[model]())
    assert run_trial(f"{model}/0").status == RAN


def test_few_of_the_damaged_models():
    results = mutations.run_trials(FEW)
    assert {name: trial for name, trial in results.items() if trial.status in BAD} == {}
    # Both endings occur: the damage neither leaves all models whole nor makes all unreadable.
    assert {REFUSED, RAN} <= {trial.status for trial in results.values()}
    assert "| **all** |" in mutations.summary(results)


@pytest.mark.slow
def test_a_thousand_of_the_damaged_models():
    results = mutations.run_trials(mutations.trial_names(PER_MODEL, every=5))
    assert {name: trial for name, trial in results.items() if trial.status in BAD} == {}


def bad_job(name):
    if name == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "hang":
        time.sleep(600)
    if name == "memory":
        return np.ones(1 << 30).nbytes
    return name


def test_a_job_that_crashes_or_hangs_costs_itself_only():
    results = run_forked(["a", "crash", "b", "hang", "c"], bad_job, timeout_seconds=20)
    assert [results[name] for name in "abc"] == ["a", "b", "c"]
    assert results["crash"] == Lost("crash", "the process ended with status -9")
    assert results["hang"] == Lost("timeout", "no result in time")


def test_a_job_may_not_take_all_memory():
    results = run_forked(["memory"], bad_job, memory_bytes=1 << 30)
    assert results["memory"].status == "crash"
