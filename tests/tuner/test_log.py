"""Records and the log: what is written is read back, whatever happens to the file."""

import os
import random
import resource
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tuner.helpers import make_record
from tilewright.compiler.targets import parse_target
from tilewright.errors import LogError
from tilewright.tuner.log import Log
from tilewright.tuner.lookup import default_logs
from tilewright.tuner.records import Record, applies_to, same_target, target_data


@pytest.mark.parametrize("status", ["ok", "build_error", "run_error", "timeout", "wrong_output"])
def test_record_round_trips(status):
    record = make_record(1.25e-4, status=status)
    assert Record.from_line(record.to_line()) == record


def test_record_with_times_must_be_ok():
    with pytest.raises(LogError, match="status 'timeout' with 2 run times"):
        make_record(status="timeout", run_times_s=(1.0, 2.0))


def test_record_times_are_finite():
    with pytest.raises(LogError, match="not positive seconds"):
        make_record(float("inf"))


def test_record_status_is_known():
    with pytest.raises(LogError, match="unknown status 'fine', known: ok, build_error"):
        make_record(status="fine")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"schema_ver', "torn or not JSON"),
        ("[1, 2]", "not a tuning record"),
        ('{"a": 1}', "not a tuning record"),
        (make_record().to_line().replace('"ok"', '"no"'), "checksum does not match"),
        ('{"checksum":"x","a":NaN}', "not finite"),
    ],
)
def test_damaged_line_says_why(line, reason):
    with pytest.raises(LogError, match=reason):
        Record.from_line(line)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 255))
def test_any_flipped_byte_is_noticed(position, flip):
    line = bytearray(make_record().to_line().encode())
    line[position % len(line)] ^= flip
    try:
        text = line.decode()
    except UnicodeDecodeError:
        return
    try:
        found = Record.from_line(text)
    except LogError:
        return
    assert found == make_record()


def test_every_tenth_line_damaged(tmp_path):
    log = Log(tmp_path / "log.jsonl")
    records = [make_record(1e-3 * (i + 1)) for i in range(40)]
    log.append(records)
    lines = log.path.read_bytes().split(b"\n")
    for index in range(9, 40, 10):
        lines[index] = lines[index][: len(lines[index]) // 2]
    log.path.write_bytes(b"\n".join(lines))
    contents = log.read()
    assert len(contents.records) == 36
    assert [skip.line for skip in contents.skipped] == [10, 20, 30, 40]
    assert "skipped 4 damaged or foreign lines (10, 20, 30, 40)" in contents.warning(log.path)
    log.repair()
    assert log.read().skipped == ()
    assert len(log.read().records) == 36
    assert (tmp_path / "log.jsonl.damaged").read_bytes().count(b"\n") == 4


def test_torn_tail_does_not_swallow_the_next_record(tmp_path):
    log = Log(tmp_path / "log.jsonl")
    log.append([make_record()])
    with open(log.path, "ab") as file:
        file.write(b'{"torn')
    log.append([make_record(2e-3)])
    contents = log.read()
    assert [record.seconds for record in contents.records] == [1e-3, 2e-3]
    assert [skip.line for skip in contents.skipped] == [2]


def test_prune_keeps_the_fastest_of_each_layouts(tmp_path):
    log = Log(tmp_path / "log.jsonl")
    other = make_record(5e-3, task_key="b" * 64)
    log.append([make_record(3e-3), make_record(1e-3), other, make_record(status="timeout")])
    assert log.prune() == (4, 2)
    assert sorted(record.seconds for record in log.read().records) == [1e-3, 5e-3]


def test_merge_adds_what_is_missing_once(tmp_path):
    first, second = Log(tmp_path / "a.jsonl"), Log(tmp_path / "b.jsonl")
    first.append([make_record(1e-3)])
    second.append([make_record(1e-3), make_record(2e-3)])
    assert first.merge([second.path]) == 1
    assert first.merge([second.path]) == 0
    assert len(first.read().records) == 2


def test_merge_names_a_missing_file(tmp_path):
    with pytest.raises(LogError, match="no such file"):
        Log(tmp_path / "a.jsonl").merge([tmp_path / "none.jsonl"])


def test_directory_as_log_is_one_message(tmp_path):
    with pytest.raises(LogError, match=r"cannot write .*Is a directory"):
        Log(tmp_path).append([make_record()])


_APPENDER = """
    import sys
    from tests.tuner.helpers import make_record
    from tilewright.tuner.log import Log
    log = Log(sys.argv[1])
    print("ready", flush=True)
    for i in range(int(sys.argv[2])):
        log.append([make_record(1e-3 * (i + 1))])
        print(i, flush=True)
"""


def _appender(path, count):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(_APPENDER), str(path), str(count)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )


def test_two_processes_and_kill_lose_nothing(tmp_path):
    path = tmp_path / "log.jsonl"
    victim, other = _appender(path, 10_000), _appender(path, 40)
    for _ in range(random.Random(0).randint(5, 25)):
        victim.stdout.readline()
    victim.send_signal(signal.SIGKILL)
    confirmed = [line for line in victim.communicate()[0].split() if line.isdigit()]
    assert other.wait() == 0
    contents = Log(path).read()
    written = len(contents.records) - 40
    assert written >= len(confirmed)
    assert len(contents.skipped) <= 1


def test_full_disk_leaves_the_log_as_it_was(tmp_path):
    log = Log(tmp_path / "log.jsonl")
    log.append([make_record()])
    size = log.path.stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, before[1]))
        with pytest.raises(LogError, match="cannot write"):
            log.append([make_record(2e-3)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert log.path.stat().st_size == size
    assert len(log.read().records) == 1


def test_record_never_applies_where_instructions_are_missing():
    wide, narrow = parse_target("x86-64-v4"), parse_target("x86-64-v3")
    assert not applies_to(target_data(wide), narrow)
    assert not applies_to(target_data(narrow), wide)  # other vectors, other layouts
    assert applies_to(target_data(wide), parse_target("znver4"))
    assert not applies_to(target_data(parse_target("znver4")), wide)
    assert same_target(target_data(wide), replace(wide, name="other name"))


@pytest.mark.parametrize(
    ("measured", "other", "applies"),
    [
        ("znver3", "x86-64-v3", True),
        ("znver3", "haswell", True),
        ("znver3", "x86-64-v4", False),
        ("znver5", "znver3", False),
        ("x86-64-v4", "znver5", True),
        ("znver5", "x86-64-v4", False),
        ("aarch64", "znver3", False),
    ],
)
def test_record_applies_where_its_instructions_and_vectors_are(measured, other, applies):
    assert applies_to(target_data(parse_target(measured)), parse_target(other)) is applies


def test_shipped_logs_are_whole_and_serve_both_vector_widths():
    shipped = [path for path in default_logs() if path.parent.name == "tuning_logs"]
    contents = [Log(path).read() for path in shipped]
    assert [each.skipped for each in contents] == [()] * len(shipped)
    records = [record for each in contents for record in each.records]
    assert all(record.ok for record in records)
    assert {record.target["vector_bits"] for record in records} == {256, 512}
