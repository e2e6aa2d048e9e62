"""Ansor as a peer: a process in its own virtual environment, spoken to over JSON lines."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tilewright.baselines.engine import Contender, Feed, Sampler
from tilewright.baselines.environment import Environment, ansor_environment
from tilewright.baselines.suite import Operator, weights
from tilewright.errors import MeasureError
from tilewright.inputs import save_npz

LAYOUTS = ("NHWC", "NCHW")
_DRIVER = Path(__file__).parent / "ansor_driver"
_SAMPLES_TO_CHOOSE = 5


class Driver:
    """A process of Ansor; every call is one request, answered before the next."""

    def __init__(self, environment: Environment | None = None, threads: int = 1) -> None:
        environment = environment or ansor_environment()
        reason = environment.missing()
        if reason is not None:
            raise MeasureError(f"ansor is {reason}")
        self._log = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115  closed with the process
        self._process = subprocess.Popen(
            [str(environment.python), str(_DRIVER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment.variables(threads),
        )

    def ask(
        self, do: str, progress: Callable[[dict], None] = lambda _content: None, **request: Any
    ) -> Any:
        """Send one request and return its answer.

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
        raise MeasureError(f"Ansor's process ended in '{do}': {self._last_line()}")

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._log.close()

    def _last_line(self) -> str:
        self._log.seek(0)
        return (self._log.read().strip().splitlines() or ["no output"])[-1]


def log_path(logs: Path, operator: Operator, layout: str) -> Path:
    """Return the log of an operator in a layout."""
    return logs / "ansor" / f"{operator.name}-{layout}.json"


def layouts_of(operator: Operator) -> tuple[str, ...]:
    """Return the layouts to tune in; a matrix product has one."""
    return LAYOUTS[:1] if operator.kind == "GMM" else LAYOUTS


def start(
    operator: Operator,
    feed: Feed,
    threads: int,
    trials: int,
    logs: Path,
    progress: Callable[[str], None] = lambda _stage: None,
) -> Contender:
    """Tune an operator as far as its logs lack trials, and return the faster of its two layouts.

    Data comes and goes in the layout tuned for, and the weight packed: a network of such operators
    would pay for neither.

    Args:
        operator: of the suite; the weights are those that `build_model` gives it.
        feed: "data".
        threads: of the kernel.
        trials: for each layout; 0 measures what the logs hold and tunes nothing.
        logs: folder of the tuning logs.
        progress: called with what is going on.

    Raises:
        MeasureError: Ansor is not installed or failed, or no log holds a valid record.
    """
    layouts = [
        layout
        for layout in layouts_of(operator)
        if trials or log_path(logs, operator, layout).exists()
    ]
    if not layouts:
        raise MeasureError(f"no log of {operator.name} in {logs / 'ansor'}, and no trials to spend")
    driver = Driver(threads=threads)
    try:
        with tempfile.TemporaryDirectory(prefix="tilewright-") as folder:
            return _best(
                driver, operator, feed, threads, trials, logs, layouts, Path(folder), progress
            )
    except BaseException:
        driver.close()
        raise


def start_model(
    model: Path,
    feed: Feed,
    threads: int,
    trials: int,
    logs: Path,
    progress: Callable[[str], None] = lambda _stage: None,
) -> Contender:
    """Tune a whole model, channels last, as far as its log lacks trials, and build it.

    Relay imports the ONNX file; Ansor's task scheduler divides the trials among its operators.

    Args:
        model: an ONNX file.
        feed: inputs by name.
        threads: of the kernels.
        trials: in all; 0 builds by what the log holds.
        logs: folder of the tuning logs.
        progress: called with what is going on.

    Raises:
        MeasureError: Ansor is not installed or failed, or there is neither a log nor a trial.
    """
    import onnx

    log = logs / "ansor" / f"{model.stem}-NHWC.json"
    if not trials and not log.exists():
        raise MeasureError(f"no log {log}, and no trials to spend")
    outputs = [output.name for output in onnx.load(model, load_external_data=False).graph.output]
    driver = Driver(threads=threads)
    shapes = {name: list(array.shape) for name, array in feed.items()}
    request: dict[str, Any] = {"model": str(model.resolve()), "shapes": shapes, "layout": "NHWC"}
    request |= {"log": str(log.resolve()), "threads": threads}
    try:
        with tempfile.TemporaryDirectory(prefix="tilewright-") as name:
            given, found = str(Path(name, "in.npz")), str(Path(name, "out.npz"))
            save_npz(given, feed)
            if trials:
                log.parent.mkdir(parents=True, exist_ok=True)
                progress(f"ansor: {trials} trials")
                driver.ask("tune_model", **request, trials=trials)
            driver.ask("load_model", **request, inputs=given, outputs=found)
            with np.load(found) as arrays:
                results = dict(zip(outputs, arrays.values(), strict=True))
    except BaseException:
        driver.close()
        raise
    return Contender(results, _remote(driver), {"layout": "NHWC"}, driver.close)


def _remote(driver: Driver) -> Sampler:
    return lambda calls, clock: driver.ask("sample", repeats=calls, clock=clock)


def _best(
    driver: Driver,
    operator: Operator,
    feed: Feed,
    threads: int,
    trials: int,
    logs: Path,
    layouts: list[str],
    folder: Path,
    progress: Callable[[str], None],
) -> Contender:
    weight, bias = weights(operator)
    np.savez(folder / "in.npz", data=feed["data"], weight=weight, bias=bias)
    shared: dict[str, Any] = {"operator": operator.to_json(), "threads": threads}
    files: dict[str, Any] = {"inputs": str(folder / "in.npz"), "outputs": str(folder / "out.npz")}
    seconds: dict[str, float] = {}
    curves: dict[str, Any] = {}
    failures: dict[str, str] = {}
    for layout in layouts:
        log = log_path(logs, operator, layout)
        log.parent.mkdir(parents=True, exist_ok=True)
        request = {**shared, "layout": layout, "log": str(log)}
        try:
            if trials:
                done = 0

                def report(content: dict, layout: str = layout) -> None:
                    nonlocal done
                    done += content["measured"]
                    progress(f"ansor {layout}: {done} more trials")

                driver.ask("tune", report, **request, trials=trials)
            curves[layout] = driver.ask("load", **request, **files)["records"]
            samples = [
                driver.ask("sample", repeats=1, clock="cpu") for _ in range(_SAMPLES_TO_CHOOSE)
            ]
            seconds[layout] = min(samples)
        except MeasureError as error:
            failures[layout] = str(error)
    if not seconds:
        raise MeasureError("; ".join(f"{name}: {text}" for name, text in failures.items()))
    best = min(seconds, key=lambda layout: seconds[layout])
    request = {**shared, "layout": best, "log": str(log_path(logs, operator, best))}
    driver.ask("load", **request, **files)
    with np.load(files["outputs"]) as arrays:
        outputs = {"output": arrays["output"]}
    notes = {"layout": best, "curves": curves, "trials": len(curves[best]), "failed": failures}
    return Contender(
        outputs,
        _remote(driver),
        notes,
        driver.close,
    )
