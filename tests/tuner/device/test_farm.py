"""Tuning on a farm of TVM's RPC servers, one of which is killed; lending this machine to one."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from tests.tuner.device.sshd import free_port
from tests.tuner.helpers import matmul_task, native
from tilewright.errors import MeasureError, TargetError
from tilewright.tuner import Log, MeasureOptions, TuneOptions, tune_tasks
from tilewright.tuner.device.choose import DeviceOptions, open_timer
from tilewright.tuner.device.rpc import count_servers, parse_host_port
from tilewright.tuner.device.serve import is_loopback, serve

_WAIT_S = 180
_SERVERS = 3


def _start(*words):
    """Start a Python module in a group of processes of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _kill(process):
    """Kill a process and those that it started, without a chance to say goodbye."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def farm():
    """Start a tracker and servers; return its address and the processes of the servers."""
    if importlib.util.find_spec("tornado") is None:
        pytest.skip("needs tornado, which TVM's tracker is made with")
    port, first = free_port(), free_port()
    address = f"127.0.0.1:{port}"
    tracker = _start(
        *("tvm.exec.rpc_tracker", "--host", "127.0.0.1"),
        *("--port", str(port), "--port-end", str(port + 1)),
    )
    servers = [
        _start(
            *("tilewright", "device", "serve", "--port", str(first + number)),
            *("--tracker", address, "--key", "test"),
        )
        for number in range(_SERVERS)
    ]
    until = time.monotonic() + _WAIT_S
    while time.monotonic() < until:
        try:
            if count_servers("127.0.0.1", port, "test") == _SERVERS:
                break
        except MeasureError:
            pass
        time.sleep(0.3)
    else:
        pytest.fail("the farm does not start")
    yield address, servers
    for process in [*servers, tracker]:
        if process.poll() is None:
            _kill(process)


@pytest.mark.slow
def test_an_unknown_key_is_named_with_those_that_are_known(farm):
    host, port = parse_host_port(farm[0], "--tracker")
    with pytest.raises(MeasureError, match="no server with the key 'other'; it knows test"):
        count_servers(host, port, "other")


@pytest.mark.slow
def test_a_farm_of_three_with_one_server_killed_loses_nothing(farm, tmp_path):
    address, servers = farm
    options = TuneOptions(trials=12, batch=6, measure=MeasureOptions(budget_s=0.002, builders=1))
    timer, module = open_timer(DeviceOptions(tracker=address, key="test"), native(), 1)
    assert timer.parallel == _SERVERS
    options = replace(options, measure=replace(options.measure, build_module=module))
    killed = []

    def kill_one(_session):
        if not killed:
            _kill(servers[0])
            killed.append(servers[0])

    session = tune_tasks(
        [(matmul_task(), 1)], native(), Log(tmp_path / "log"), options, kill_one, timer=timer
    )
    log = Log(tmp_path / "log").read()
    measured = [record for record in log.records if not record.hardware.get("raced")]
    assert killed
    assert session.stopped == "12 trials"
    assert [record.status for record in measured] == ["ok"] * 12
    assert any(record.hardware.get("winner") for record in log.records)
    assert len(log.records[0].hardware["devices"]) == _SERVERS
    # One of three lost it; which of the three sessions that was, the tracker decided.
    assert sum(warning.startswith("device lost") for warning in session.warnings) >= 1


def test_a_tracker_that_is_not_there():
    with pytest.raises(MeasureError, match="does not answer"):
        count_servers("127.0.0.1", free_port(), "test")


@pytest.mark.parametrize("text", ["board", "board:x", ":1", "board:99999"])
def test_what_is_no_host_and_port_is_refused(text):
    with pytest.raises(TargetError, match="expected host:port"):
        parse_host_port(text, "--tracker")


def test_loopback_is_known():
    assert is_loopback("127.0.0.1")
    assert is_loopback("localhost")
    assert not is_loopback("0.0.0.0")
    assert not is_loopback("board.local")


def test_serving_on_another_address_warns():
    said = []

    def say(text):
        said.append(text)
        if text.startswith("serving"):
            raise KeyboardInterrupt

    serve("0.0.0.0", free_port(), "", "", say)
    assert "can run any code here" in said[0]
    assert said[-1] == "stopped"


@pytest.mark.slow
def test_serving_stays_on_loopback_unless_told_otherwise():
    port = free_port()
    command = [sys.executable, "-u", "-m", "tilewright", "device", "serve", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == f"serving on 127.0.0.1:{port}\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "stopped\n"
