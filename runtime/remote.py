"""Kernels on a board: a small static program there, reached through ssh or as a child process.

The board needs no Python, no TVM and no tilewright: `runtime/c/tw_board.c`, built for it once, is
copied over and started, and serves this process over its standard input and output. When this
process ends or the connection breaks, so does the program.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import shlex
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

from tilewright.errors import DeviceLostError, TargetError

_VERSION = 1
_CHUNK_BYTES = 1 << 16
_SHOWN_ERROR_CHARS = 300
_FOLDER = ".cache/tilewright"


@dataclass(frozen=True)
class Address:
    """Where a board is.

    Attributes:
        text: as a person wrote it.
        login: user@host for ssh; "" for a program on this machine.
        port: of ssh, or None for its own choice.
        starter: command on the board that starts the runner, for instance an emulator.
    """

    text: str
    login: str = ""
    port: int | None = None
    starter: tuple[str, ...] = ()


def parse_address(text: str) -> Address:
    """Read `ssh://[user@]host[:port][?exec=COMMAND]` or `exec:[COMMAND]`.

    Raises:
        TargetError: it is neither.
    """
    kind, colon, rest = text.partition(":")
    if kind == "exec" and colon:
        return Address(text, starter=tuple(shlex.split(rest)))
    try:
        parts = urlsplit(text)
        known = parts.scheme == "ssh" and parts.hostname and parts.path in ("", "/")
        port, options = parts.port, parse_qs(parts.query, strict_parsing=bool(parts.query))
    except ValueError:
        known, port, options = False, None, {}
    if not known or not set(options) <= {"exec"}:
        raise TargetError(
            f"device '{text}' is not an address; expected ssh://user@host, "
            "ssh://user@host:port?exec=COMMAND, or exec:COMMAND for a program on this machine"
        )
    login = parts.netloc.rpartition(":")[0] if port is not None else parts.netloc
    return Address(text, login, port, tuple(shlex.split(options.get("exec", [""])[0])))


@dataclass(frozen=True)
class Greeting:
    """What a runner says about its board: `uname -m`, processors, and a name from the kernel."""

    machine: str
    processors: int
    processor: str


@dataclass(frozen=True)
class Entry:
    """A kernel and its arguments: names of blobs for inputs, sizes in bytes for outputs."""

    library: str
    arguments: tuple[str | int, ...]


@dataclass
class Outcome:
    """What running kernels gave.

    Attributes:
        error: why it failed, or "".
        timeout: whether it took too long.
        outputs: bytes of each output of each entry, if asked for.
        seconds: of each run, for each entry.
        peaks: multiply-add operations a second of one thread, beside the runs.
    """

    error: str = ""
    timeout: bool = False
    outputs: list[bytes] = field(default_factory=list)
    seconds: list[list[float]] = field(default_factory=list)
    peaks: list[float] = field(default_factory=list)


class Board:
    """A connection to the runner on a board; to be closed.

    Args:
        address: where it is.
        program: the runner, as built for the board.
        ssh: command and options of ssh.
        timeout_s: for everything but measuring; a board that does not answer is lost.

    Raises:
        DeviceLostError: it does not answer, or something else does.
    """

    def __init__(
        self,
        address: Address,
        program: bytes,
        ssh: Sequence[str] = ("ssh",),
        timeout_s: float = 30.0,
    ) -> None:
        self.address, self.timeout_s = address, timeout_s
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 closed with the connection
        self._process: subprocess.Popen[bytes] | None = None
        self._pending = b""
        self._local: str | None = None
        self.held_bytes = 0
        command = self._install(program, ssh)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
        )
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
        words = self._request("hello").split(maxsplit=4)
        if len(words) < 4 or words[0] != "tilewright-board" or words[1] != str(_VERSION):
            self.close()
            raise DeviceLostError(f"{address.text}: what answers is no runner of this release")
        self.greeting = Greeting(words[2], int(words[3]), words[4] if len(words) > 4 else "")

    def close(self) -> None:
        """End the runner and the connection."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None
                with contextlib.suppress(OSError):
                    pipe.close()
        self._process = None
        self._errors.close()
        if self._local is not None:
            os.unlink(self._local)
            self._local = None

    def put(self, name: str, content: bytes | memoryview) -> None:
        """Keep bytes on the board under a name."""
        self._request(f"put {name} {len(content)}", content)
        self.held_bytes += len(content)

    def drop(self) -> None:
        """Forget all bytes on the board."""
        self._request("drop")
        self.held_bytes = 0

    def measure(
        self,
        entries: Sequence[Entry],
        *,
        threads: int = 1,
        timeout_s: float = 10.0,
        rounds: int = 10,
        budget_s: float = 0.03,
        limit_s: float = 0.0,
        want_outputs: bool = False,
    ) -> Outcome:
        """Run kernels in turns and time them; a crash is an outcome, not an error.

        Args:
            entries: kernels whose library and inputs were `put`.
            threads: that a kernel may use.
            timeout_s: for all of it; the kernels are then stopped on the board.
            rounds: of timing, at most; at least 3 are run.
            budget_s: about how long the timing of one kernel may take.
            limit_s: kernels whose first runs take longer are not timed further; 0 for no limit.
            want_outputs: send back what was computed.

        Raises:
            DeviceLostError: the board does not answer.
        """
        numbers = (
            *(threads, int(timeout_s * 1e3), rounds, int(budget_s * 1e6), int(limit_s * 1e9)),
            *(int(want_outputs), len(entries)),
        )
        lines = [" ".join(["measure", *map(str, numbers)])]
        for entry in entries:
            arguments = (f"={a}" if isinstance(a, str) else f":{a}" for a in entry.arguments)
            lines.append(" ".join([entry.library, *arguments]))
        deadline = time.monotonic() + timeout_s + self.timeout_s
        size, reason = self._request("\n".join(lines), deadline=deadline).split(maxsplit=1)
        return _read_outcome(self._read(int(size), deadline), reason, len(entries), timeout_s)

    # -- the connection ------------------------------------------------------------------------

    def _install(self, program: bytes, ssh: Sequence[str]) -> list[str]:
        """Bring the runner to the board unless it is there; return the command that starts it."""
        if not self.address.login:
            descriptor, self._local = tempfile.mkstemp(prefix="tilewright-board-")
            with os.fdopen(descriptor, "wb") as file:
                file.write(program)
            os.chmod(self._local, 0o700)
            return [*self.address.starter, self._local]
        port = [] if self.address.port is None else ["-p", str(self.address.port)]
        alive = ["-oBatchMode=yes", "-oConnectTimeout=10", "-oServerAliveInterval=5"]
        login = [*ssh, "-T", *alive, *port, self.address.login]
        path = f"{_FOLDER}/board-{hashlib.sha256(program).hexdigest()[:16]}"
        script = (
            f"[ -x {path} ] || {{ mkdir -p {_FOLDER} && cat > {path}.$$ && chmod 700 {path}.$$ "
            f"&& mv {path}.$$ {path}; }}"
        )
        try:
            done = subprocess.run(
                [*login, script],
                input=program,
                capture_output=True,
                timeout=4 * self.timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise DeviceLostError(
                f"{self.address.text}: copying the runner took too long"
            ) from error
        except OSError as error:
            raise DeviceLostError(f"{self.address.text}: cannot start ssh: {error}") from error
        if done.returncode:
            text = done.stderr.decode(errors="replace").strip()[-_SHOWN_ERROR_CHARS:]
            raise DeviceLostError(f"{self.address.text}: cannot copy the runner: {text}")
        return [*login, shlex.join(["exec", *self.address.starter, f"./{path}"])]

    def _request(
        self, text: str, payload: bytes | memoryview = b"", deadline: float | None = None
    ) -> str:
        """Send a request; return the rest of the line that answers it."""
        deadline = deadline or time.monotonic() + self.timeout_s
        self._write(text.encode() + b"\n", deadline)
        self._write(payload, deadline)
        status, _, rest = self._read_line(deadline).partition(" ")
        if status != "ok":
            raise self._lost(f"answered '{status} {rest}'"[:_SHOWN_ERROR_CHARS])
        return rest

    def _lost(self, why: str) -> DeviceLostError:
        text = ""
        if not self._errors.closed:
            self._errors.seek(0)
            text = self._errors.read().decode(errors="replace").strip()[-_SHOWN_ERROR_CHARS:]
        self.close()
        return DeviceLostError(f"{self.address.text}: {why}{': ' if text else ''}{text}")

    def _wait(self, descriptor: int, write: bool, deadline: float) -> None:
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT if write else select.POLLIN)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1e3):
            raise self._lost("does not answer")

    def _write(self, data: bytes | memoryview, deadline: float) -> None:
        if self._process is None:
            raise DeviceLostError(f"{self.address.text}: the connection is closed")
        assert self._process.stdin is not None
        descriptor, left = self._process.stdin.fileno(), memoryview(data).cast("B")
        while left:
            self._wait(descriptor, True, deadline)
            try:
                left = left[os.write(descriptor, left[:_CHUNK_BYTES]) :]
            except OSError as error:
                raise self._lost("the connection broke") from error

    def _fill(self, deadline: float) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        self._wait(descriptor, False, deadline)
        got = os.read(descriptor, _CHUNK_BYTES)
        if not got:
            raise self._lost("the connection broke")
        self._pending += got

    def _read_line(self, deadline: float) -> str:
        while b"\n" not in self._pending:
            self._fill(deadline)
        line, _, self._pending = self._pending.partition(b"\n")
        return line.decode(errors="replace")

    def _read(self, size: int, deadline: float) -> bytes:
        parts, missing = [self._pending[:size]], size - len(self._pending)
        self._pending = self._pending[size:]
        while missing > 0:
            self._fill(deadline)
            parts.append(self._pending[:missing])
            self._pending = self._pending[missing:]
            missing -= len(parts[-1])
        return b"".join(parts)


def _read_outcome(data: bytes, reason: str, entries: int, timeout_s: float) -> Outcome:
    """Read what `tw_measure` wrote, and how its process ended."""
    found = Outcome(seconds=[[] for _ in range(entries)])
    kind, _, number = reason.partition(" ")
    if kind == "timeout":
        found.error, found.timeout = f"took over {timeout_s:g} s to run", True
        return found
    if reason != "exit 0":
        what = "was ended by signal" if kind == "signal" else "ended with status"
        found.error = f"the process {what} {number}"
        return found
    while data:
        line, _, data = data.partition(b"\n")
        word, _, rest = line.decode().partition(" ")
        if word == "output":
            found.outputs.append(data[: int(rest)])
            data = data[int(rest) :]
        elif word == "times":
            entry, *times = rest.split()
            found.seconds[int(entry)] += map(float, times)
        elif word == "peak":
            found.peaks.append(float(rest))
        else:
            found.error = f"the kernel failed: {rest}"
    return found


def ssh_from(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the command of ssh: TILEWRIGHT_SSH with its options, else ssh."""
    return tuple(shlex.split(environment.get("TILEWRIGHT_SSH", "ssh"))) or ("ssh",)
