"""The runner for boards, on this machine: results, crashes, hangs, lost connections."""

import platform
import struct
import subprocess
import time

import pytest

from tilewright.compiler.toolchain import find_c_compiler
from tilewright.errors import DeviceLostError, TargetError
from tilewright.runtime.remote import Address, Board, Entry, parse_address
from tilewright.tuner.device.runner import board_runner

_BODIES = {
    "double": "for (int i = 0; i < 4; ++i) y[i] = 2 * x[i]; return 0;",
    "crash": "*(volatile int *)8 = 1; return 0;",
    "hang": "for (volatile int i = 1; i;) {} return 0;",
    "overrun": "y[-1] = 1; return 0;",
    "fail": "return -1;",
    "global": "static float two = 2; static float *at = &two; y[0] = *at * x[0]; return 0;",
    "library": "y[0] = __builtin_expf(x[0]); return 0;",
    "unknown": "extern int nobody(void); return nobody();",
}
_X = struct.pack("4f", 1, 2, 3, 4)


@pytest.fixture(scope="module")
def machine():
    return {"x86_64": "x86_64", "aarch64": "aarch64"}[platform.machine()]


@pytest.fixture
def board(machine):
    board = Board(parse_address("exec:"), board_runner(machine), timeout_s=20)
    board.put("x", _X)
    yield board
    board.close()


def _put(board, body, folder):
    source, library = folder / "k.c", folder / "k.so"
    source.write_text(f"int tw_kernel_candidate(float *x, float *y) {{ {_BODIES[body]} }}")
    command = [*find_c_compiler(), "-O1", "-shared", "-fPIC", "-nostdlib", source, "-o", library]
    subprocess.run(command, check=True)
    board.put(body, library.read_bytes())
    return Entry(body, ("x", 16))


def test_board_says_what_it_is(board, machine):
    assert board.greeting.machine == machine
    assert board.greeting.processors >= 1


def test_kernel_runs_and_its_outputs_come_back(board, tmp_path):
    outcome = board.measure([_put(board, "double", tmp_path)], want_outputs=True)
    assert outcome.error == ""
    assert struct.unpack("4f", outcome.outputs[0]) == (2, 4, 6, 8)
    assert min(outcome.seconds[0]) > 0
    assert len(outcome.peaks) >= 3


@pytest.mark.parametrize(("body", "first"), [("global", 2.0), ("library", 2.7182817459)])
def test_addresses_and_functions_of_the_c_library_are_found(body, first, board, tmp_path):
    outcome = board.measure([_put(board, body, tmp_path)], want_outputs=True)
    assert outcome.error == ""
    assert struct.unpack_from("f", outcome.outputs[0])[0] == pytest.approx(first, rel=1e-6)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("crash", "signal 11"),
        ("overrun", "outside of its outputs"),
        ("fail", "the kernel failed"),
        ("unknown", "needs the function 'nobody'"),
    ],
)
def test_what_a_kernel_does_wrong_costs_only_itself(body, message, board, tmp_path):
    assert message in board.measure([_put(board, body, tmp_path)]).error
    outcome = board.measure([_put(board, "double", tmp_path)], want_outputs=True)
    assert struct.unpack("4f", outcome.outputs[0]) == (2, 4, 6, 8)


def test_a_kernel_that_hangs_is_stopped_there(board, tmp_path):
    outcome = board.measure([_put(board, "hang", tmp_path)], timeout_s=0.3)
    assert outcome.timeout
    assert "took over 0.3 s" in outcome.error
    assert not board.measure([_put(board, "double", tmp_path)]).error


def test_kernels_in_turns_have_times_of_their_own(board, tmp_path):
    entries = [_put(board, "double", tmp_path), _put(board, "global", tmp_path)]
    outcome = board.measure(entries, rounds=4, budget_s=0.001)
    assert len(outcome.seconds) == 2
    assert all(times for times in outcome.seconds)


def test_a_runner_that_dies_is_a_lost_device(board):
    board._process.kill()
    with pytest.raises(DeviceLostError, match="exec:: the connection broke"):
        board.put("y", _X)
    with pytest.raises(DeviceLostError, match="closed"):
        board.put("y", _X)


def test_a_silent_board_is_lost_in_time():
    started = time.monotonic()
    with pytest.raises(DeviceLostError, match="does not answer"):
        Board(Address("exec:sleep", starter=("sh", "-c", "exec sleep 100")), b"", timeout_s=0.3)
    assert time.monotonic() - started < 10


def test_something_else_is_not_taken_for_a_runner():
    with pytest.raises(DeviceLostError, match="answered"):
        Board(Address("exec:cat", starter=("cat", "-")), b"", timeout_s=5)


def test_addresses():
    assert parse_address("ssh://pi@board") == Address("ssh://pi@board", "pi@board")
    assert parse_address("ssh://board:2222").port == 2222
    assert parse_address("ssh://pi@board:22?exec=taskset%20-c%203").starter == (
        "taskset",
        "-c",
        "3",
    )
    assert parse_address("exec:qemu-aarch64 -cpu max").starter == ("qemu-aarch64", "-cpu", "max")


@pytest.mark.parametrize("text", ["pi@board", "ssh://", "http://board", "ssh://a/b", "ssh://a?b=1"])
def test_what_is_no_address_is_refused(text):
    with pytest.raises(TargetError, match="is not an address"):
        parse_address(text)
