"""llvm-mca's cycles in place of times: judged, logged and shown as what they are."""

import json
import re

import pytest
from typer.testing import CliRunner

from tests.tuner.helpers import make_record, matmul_task, native
from tilewright.cli import app
from tilewright.compiler.layout.primitives import Layout
from tilewright.compiler.schedule import default_decisions
from tilewright.compiler.targets import parse_target
from tilewright.errors import TargetError
from tilewright.tuner import Log, Lookup
from tilewright.tuner.candidate import Candidate, canonical_json
from tilewright.tuner.device.mca import find_mca, hottest_loop
from tilewright.tuner.device.mca_timer import ModelTimer
from tilewright.tuner.records import target_data
from tilewright.tuner.workload import describe

_LOOP = """\
.outer:
\tldr\tq0, [x0]
.inner:
\tldr\tq1, [x1], #16
\tfmla\tv2.4s, v1.4s, v0.s[0]
\tfmla\tv3.4s, v1.4s, v0.s[1]
\tstr\tq9, [sp, #16]
\tb.ne\t.inner
\tb\t.outer
"""


@pytest.fixture
def mca():
    try:
        return find_mca()
    except TargetError as error:
        pytest.skip(str(error))


def test_inner_loop_is_found_and_counted():
    loop = hottest_loop(_LOOP)
    assert (len(loop.lines), loop.multiply_adds, loop.accumulators, loop.spills) == (5, 2, 2, 1)


def test_tuning_by_a_model_shows_cycles_and_logs_what_they_are(mca, tmp_path):
    log = tmp_path / "log.jsonl"
    done = CliRunner().invoke(
        app,
        [
            *("tune-op", "conv2d", "--data", "1,16,9,9", "--weight", "32,16,3,3", "--pad", "1"),
            *("--target", "aarch64:neoverse-n1", "--measure", "mca"),
            *("--trials", "6", "--log", str(log)),
        ],
    )
    assert done.exit_code == 0, done.output
    assert re.search(r"all tasks [0-9.]+ kcycles -> [0-9.]+ kcycles", done.output)
    assert not re.search(r"\d (ms|us)\b", done.output)
    records = Log(log).read().records
    assert {record.hardware["measure"] for record in records} == {"mca"}
    assert records[0].hardware["processor"].startswith("llvm-mca")


def test_times_of_a_device_come_before_cycles_of_a_model():
    task, target = matmul_task(), native()
    layouts = tuple(Layout(shape) for shape in task.operator.shapes)
    decisions = default_decisions(task.operator.func, target).to_json()
    candidate = Candidate(layouts, canonical_json(json.loads(decisions)))
    alike = {"task": describe(task), "candidate": candidate, "target": target_data(target)}
    model = make_record(1e-6, task.key, hardware={"measure": "mca"}, **alike)
    device = make_record(1e-3, task.key, **alike)

    def found(*records):
        lookup = Lookup([], target)
        lookup.add(records)
        (decision,) = lookup(task)
        return decision.seconds

    assert found(model, device) == device.seconds
    assert found(model) == model.seconds


def test_processors_without_a_model_are_refused(mca):
    with pytest.raises(TargetError, match="needs an aarch64 target"):
        ModelTimer(parse_target("armv7:cortex-a7"))
