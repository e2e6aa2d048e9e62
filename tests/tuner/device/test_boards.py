"""Tuning on boards: aarch64 runners under qemu, through ssh and as children, one of them killed."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.qemu import PI4
from tests.tuner.device.sshd import free_port, ssh_server
from tests.tuner.helpers import matmul_operator
from tilewright.compiler.targets import parse_target
from tilewright.compiler.tasks import task_of
from tilewright.errors import MeasureError, TargetError
from tilewright.tuner import Log, MeasureOptions, TuneOptions, tune_tasks
from tilewright.tuner.device.choose import DeviceOptions, open_timer
from tilewright.tuner.device.runner import board_runner

pytestmark = pytest.mark.arm

_QEMU = "qemu-aarch64 -cpu cortex-a72"
_OPTIONS = TuneOptions(trials=9, batch=5, measure=MeasureOptions(budget_s=0.002, builders=1))


@pytest.fixture
def target():
    lacking = PI4.missing()
    if lacking:
        pytest.skip(lacking)
    return replace(parse_target("aarch64:cortex-a72"), cores=1)


def _task(target):
    return task_of(matmul_operator(20, 24, 40), target, "matmul")


def test_three_devices_one_killed_lose_nothing(target, tmp_path, monkeypatch):
    home = Path.home() / ".cache" / "tilewright"
    before = set(home.glob("board-*")) if home.is_dir() else set()
    with ssh_server(tmp_path) as (port, ssh):
        monkeypatch.setenv("TILEWRIGHT_SSH", ssh)
        starter = _QEMU.replace(" ", "%20")
        addresses = (
            f"ssh://127.0.0.1:{port}?exec={starter}",
            f"exec:{_QEMU}",
            f"exec:{_QEMU} -s 4194304",
        )
        killed = []

        def kill_one(session):
            if killed:
                return
            member = timer._members[1]
            killed.append(member.device.name)
            member.device._board._process.kill()

        timer, _ = open_timer(DeviceOptions(addresses), target, 1)
        session = tune_tasks(
            [(_task(target), 1)], target, Log(tmp_path / "log"), _OPTIONS, kill_one, timer=timer
        )
    for path in set(home.glob("board-*")) - before:
        path.unlink()
    records = Log(tmp_path / "log").read().records
    measured = [record for record in records if not record.hardware.get("raced")]
    assert session.stopped == "9 trials"
    assert len(measured) == 9
    assert {record.status for record in measured} == {"ok"}
    assert any(record.hardware.get("winner") for record in records)
    assert set(records[0].hardware["devices"]) == set(addresses)
    assert any(f"device lost: {killed[0]}" in warning for warning in session.warnings)


def test_a_board_that_is_not_there_is_said_and_done_without(target, tmp_path, monkeypatch):
    if shutil.which("ssh") is None:
        pytest.skip("needs ssh")
    nobody = f"ssh://nobody@127.0.0.1:{free_port()}"
    timer, _ = open_timer(DeviceOptions((nobody, f"exec:{_QEMU}")), target, 1)
    session = tune_tasks([(_task(target), 1)], target, Log(tmp_path / "log"), _OPTIONS, timer=timer)
    assert session.stopped == "9 trials"
    assert any(f"device lost: {nobody}: cannot copy" in warning for warning in session.warnings)
    with pytest.raises(MeasureError, match=r"no device answers: .*cannot copy the runner"):
        open_timer(DeviceOptions((nobody,)), target, 1)


def test_the_runner_is_small_and_static(target, tmp_path):
    program = board_runner("aarch64")
    assert len(program) < 1 << 20
    assert b"/lib/ld-linux" not in program


def test_code_for_another_processor_needs_a_device(target, tmp_path):
    task = _task(target)
    with pytest.raises(TargetError, match="--device ssh://user@board"):
        tune_tasks([(task, 1)], target, Log(tmp_path / "log"), _OPTIONS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"devices": ("exec:",), "measure": "mca"}, "one of --device"),
        ({"tracker": "127.0.0.1:1"}, "belong together"),
        ({"measure": "guess"}, "'guess' is unknown"),
    ],
)
def test_options_that_contradict_each_other(options, message):
    with pytest.raises(TargetError, match=message):
        DeviceOptions(**options)
