"""Ansor as a peer: a process in its own virtual environment, spoken to over JSON lines."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tilewright.baselines.budget import Budget, Curve, note_round, priced
from tilewright.baselines.case import Case
from tilewright.baselines.engine import Contender, Sampler
from tilewright.baselines.environment import Environment, ansor_environment
from tilewright.baselines.machine import instruction_set
from tilewright.baselines.suite import Operator, weights
from tilewright.errors import MeasureError
from tilewright.inputs import save_npz

Request = dict[str, Any]
LAYOUTS = ("NHWC", "NCHW")
_DRIVER = Path(__file__).parent / "ansor_driver"
_SAMPLES_TO_CHOOSE = 5
_ROUND_TRIALS = 32
# As `ansor_driver/stall.py` says that nothing works any more.
_STALLED = 75
_MOST_STALLS = 3
_RESUMABLE = ("tune", "tune_model")


class Driver:
    """A process of Ansor; every call is one request, answered before the next."""

    def __init__(self, environment: Environment | None = None, threads: int = 1) -> None:
        environment = environment or ansor_environment()
        reason = environment.missing()
        if reason is not None:
            raise MeasureError(f"ansor is {reason}")
        self._environment, self._threads = environment, threads
        self._stalls = 0
        self._start()

    def _start(self) -> None:
        self._log = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115  closed with the process
        self._process = subprocess.Popen(
            [str(self._environment.python), str(_DRIVER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=self._environment.variables(self._threads),
        )

    def ask(
        self, do: str, progress: Callable[[dict], None] = lambda _content: None, **request: Any
    ) -> Any:
        """Send one request and return its answer.

        A tuning whose workers went silent is started again, and goes on from its log.

        Raises:
            MeasureError: Ansor refused, or its process ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise MeasureError(f"Ansor's process ended: {self._last_line()}") from error
        for line in self._process.stdout:
            reply = json.loads(line)
            if "progress" in reply:
                progress(reply["progress"])
            elif "done" in reply:
                return reply["done"]
            else:
                raise MeasureError(f"Ansor cannot {do}: {reply['error'].splitlines()[-1]}")
        stalled = self._process.wait() == _STALLED and do in _RESUMABLE
        if not stalled or self._stalls == _MOST_STALLS:
            raise MeasureError(f"Ansor's process ended in '{do}': {self._last_line()}")
        self._stalls += 1
        self.close()
        self._start()
        return self.ask(do, progress, **request)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._log.close()

    def _last_line(self) -> str:
        self._log.seek(0)
        return (self._log.read().strip().splitlines() or ["no output"])[-1]


def log_path(logs: Path, name: str, layout: str) -> Path:
    """Return the log of an operator or model in a layout, on processors like this one."""
    return logs / "ansor" / instruction_set() / f"{name}-{layout}.json"


def layouts_of(operator: Operator) -> tuple[str, ...]:
    """Return the layouts to tune in; a matrix product has one."""
    return LAYOUTS[:1] if operator.kind == "GMM" else LAYOUTS


def start(case: Case) -> Contender:
    """Tune as far as the logs lack trials, and return the best program in place.

    An operator is the faster of its two layouts, with the budget for each. Data comes and goes in
    the layout tuned for, and the weight packed: a network of such operators would pay for neither.
    A whole model works channels last: Relay imports the ONNX file, and Ansor's task scheduler
    divides the trials among its operators.

    Raises:
        MeasureError: Ansor is not installed or failed, or no log holds a valid record.
    """
    return _start_model(case) if case.operator is None else _start_operator(case, case.operator)


def _start_operator(case: Case, operator: Operator) -> Contender:
    logs = {layout: log_path(case.logs, case.log_name, layout) for layout in layouts_of(operator)}
    if not case.budget.spends:
        logs = {layout: log for layout, log in logs.items() if log.exists()}
    if not logs:
        folder = case.logs / "ansor"
        raise MeasureError(f"no log of {case.log_name} in {folder}, and no trials to spend")
    driver = Driver(threads=case.threads)
    try:
        with tempfile.TemporaryDirectory(prefix="tilewright-") as folder_name:
            folder = Path(folder_name)
            weight, bias = weights(operator)
            np.savez(folder / "in.npz", data=case.feed["data"], weight=weight, bias=bias)
            request: Request = {"operator": operator.to_json(), **_where(case.threads)}
            race = _Race(driver, request, folder / "in.npz", folder / "out.npz", case.budget)
            for layout, log in logs.items():
                race.enter(layout, log, case.progress)
            return race.winner()
    except BaseException:
        driver.close()
        raise


def _start_model(case: Case) -> Contender:
    import onnx

    layout, budget = "NHWC", case.budget
    log = log_path(case.logs, case.log_name, layout)
    if not budget.spends and not log.exists():
        raise MeasureError(f"no log {log}, and no trials to spend")
    graph = onnx.load(case.model, load_external_data=False).graph
    driver = Driver(threads=case.threads)
    shapes = {key: list(array.shape) for key, array in case.feed.items()}
    request: Request = {"model": str(case.model.resolve()), "shapes": shapes, "layout": layout}
    request |= {"log": str(log.resolve()), **_where(case.threads)}
    try:
        with tempfile.TemporaryDirectory(prefix="tilewright-") as folder:
            files: Request = {k: str(Path(folder, f"{k}.npz")) for k in ("inputs", "outputs")}
            save_npz(files["inputs"], case.feed)
            found = _tuned(
                lambda: priced(driver.ask("curve_model", log=request["log"]), log),
                lambda trials, note: driver.ask(
                    "tune_model", note, **request, trials=trials, limit=budget.trials
                ),
                log,
                budget,
                case.progress,
                budget.trials or _ROUND_TRIALS,
            )
            keep = budget.within(found)
            driver.ask("load_model", **request, keep=keep, **files)
            with np.load(files["outputs"]) as arrays:
                names = (output.name for output in graph.output)
                results = dict(zip(names, arrays.values(), strict=True))
    except BaseException:
        driver.close()
        raise
    return Contender(results, _remote(driver), {"layout": layout, "trials": keep}, driver.close)


class _Race:
    """The layouts of one operator: each is tuned and timed briefly, the fastest is kept."""

    def __init__(
        self, driver: Driver, request: Request, inputs: Path, outputs: Path, budget: Budget
    ) -> None:
        self._driver, self._request, self._budget = driver, request, budget
        self._files = {"inputs": str(inputs), "outputs": str(outputs)}
        self._loads: dict[str, Request] = {}
        self._seconds: dict[str, float] = {}
        self._curves: dict[str, Curve] = {}
        self._failed: dict[str, str] = {}

    def enter(self, layout: str, log: Path, progress: Callable[[str], None]) -> None:
        """Tune and time a layout; one that fails is noted."""
        ask = self._driver.ask
        request = {**self._request, "layout": layout, "log": str(log)}
        try:
            found = _tuned(
                lambda: priced(ask("curve", **request), log),
                lambda trials, note: ask("tune", note, **request, trials=trials),
                log,
                self._budget,
                lambda text: progress(f"{layout}, {text}"),
            )
            self._curves[layout] = found
            load = {**request, "keep": self._budget.within(found), **self._files}
            ask("load", **load)
            samples = [ask("sample", repeats=1, clock="cpu") for _ in range(_SAMPLES_TO_CHOOSE)]
            self._loads[layout], self._seconds[layout] = load, min(samples)
        except MeasureError as error:
            self._failed[layout] = str(error)

    def winner(self) -> Contender:
        """Load the fastest layout.

        Raises:
            MeasureError: every layout failed.
        """
        if not self._seconds:
            raise MeasureError("; ".join(f"{name}: {text}" for name, text in self._failed.items()))
        best = min(self._seconds, key=lambda layout: self._seconds[layout])
        self._driver.ask("load", **self._loads[best])
        with np.load(self._files["outputs"]) as arrays:
            outputs = {"output": arrays["output"]}
        notes = {
            **{"layout": best, "curves": self._curves, "failed": self._failed},
            "trials": self._loads[best]["keep"],
        }
        return Contender(outputs, _remote(self._driver), notes, self._driver.close)


def _tuned(
    curve: Callable[[], Curve],
    tune: Callable[[int, Callable[[dict], None]], Any],
    log: Path,
    budget: Budget,
    progress: Callable[[str], None],
    round_trials: int = _ROUND_TRIALS,
) -> Curve:
    """Tune until the log holds what the budget allows, so many trials a time; return its curve."""
    log.parent.mkdir(parents=True, exist_ok=True)
    found = curve()
    measured = len(found)

    def note(content: dict) -> None:
        nonlocal measured
        measured += content["trials"]
        note_round(log, content["trials"], content["wall_s"], content["processor_s"])
        progress(f"{measured} trials so far")

    while left := budget.left(len(found), sum(cost for _, cost in found), round_trials):
        progress(f"{len(found)} trials so far")
        tune(left, note)
        before, found = len(found), curve()
        if len(found) == before:  # the space is exhausted
            break
    return found


def _where(threads: int) -> Request:
    """Return the newest processor that this LLVM (10) knows and that this machine includes."""
    names = {"avx512_vnni": "cascadelake", "avx512": "skylake-avx512", "avx2": "core-avx2"}
    return {"processor": names.get(instruction_set(), "x86-64"), "threads": threads}


def _remote(driver: Driver) -> Sampler:
    return lambda calls, clock: driver.ask("sample", repeats=calls, clock=clock)
