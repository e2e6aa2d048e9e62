"""One damaged model: compile it, run it where that is cheap, and say how that ended."""

from __future__ import annotations

import tempfile
import traceback
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx

import tilewright
from benchmarks.mutations.models import MODELS
from benchmarks.mutations.mutate import mutate
from tilewright.api import FAULT
from tilewright.errors import TilewrightError

REFUSED, RAN, TOO_LARGE, TRACEBACK = "refused", "ran", "too large to run here", "traceback"
CRASH, HANG = "crash", "timeout"  # what `benchmarks.forked` says
BAD = frozenset((TRACEBACK, CRASH, HANG))

# A trial must not become a benchmark: what is larger is compiled only.
_MOST_OPERATIONS = 1 << 28
_MOST_BYTES = 1 << 27


@dataclass(frozen=True)
class Trial:
    """How one damaged model ended.

    Attributes:
        status: REFUSED by an error for people, RAN, TOO_LARGE (compiled only), or what must not
            be: TRACEBACK (or an error that stands for one inside the compiler), CRASH, HANG.
        reason: the error.
    """

    status: str
    reason: str = ""

    def to_json(self) -> dict[str, str]:
        """Return the fields that say something."""
        return {name: text for name, text in asdict(self).items() if text}


def damaged(name: str) -> bytes:
    """Return the bytes of the damaged model `name`: "model/number", which is also the seed."""
    model, number = name.split("/")
    original = MODELS[model]()
    return mutate(original, random_of(name)) if int(number) else original.SerializeToString()


def random_of(name: str) -> np.random.Generator:
    """Return the random numbers of a trial."""
    model, number = name.split("/")
    return np.random.default_rng([list(MODELS).index(model), int(number)])


def run_trial(name: str) -> Trial:
    """Damage a model, compile what is left, and run it on odd inputs."""
    with (
        tempfile.TemporaryDirectory(prefix="tilewright-mutant-") as folder,
        warnings.catch_warnings(),
        np.errstate(all="ignore"),
    ):
        warnings.simplefilter("ignore")
        path = Path(folder, "model.onnx")
        path.write_bytes(damaged(name))
        _write_weights(path)
        try:
            return _compile_and_run(path, random_of(name))
        except TilewrightError as error:
            text = _one_line(error).replace(f"{folder}/", "").replace(folder, ".")
            return Trial(TRACEBACK if text.startswith(FAULT) else REFUSED, text)
        except Exception as error:  # the point of the exercise: nothing else may come out
            where = traceback.extract_tb(error.__traceback__)
            own = [frame for frame in where if "/tilewright/" in frame.filename] or where
            place = f"{Path(own[-1].filename).name}:{own[-1].lineno}"
            return Trial(TRACEBACK, f"{type(error).__name__} at {place}: {_one_line(error)}")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def _write_weights(path: Path) -> None:
    """Write the file that external weights may name."""
    path.with_name("weights.bin").write_bytes(np.random.default_rng(0).bytes(1024))


def _compile_and_run(path: Path, random: np.random.Generator) -> Trial:
    compiled = tilewright.compile(path, logs=())
    entry = compiled.description["entries"][0]
    operations = sum(call.get("operations", 0) for call in entry["calls"])
    specs = (*compiled.module.inputs, *compiled.module.outputs)
    size_bytes = entry["arena_bytes"] + sum(8 * int(np.prod(s.shape, dtype=float)) for s in specs)
    if operations > _MOST_OPERATIONS or size_bytes > _MOST_BYTES:
        return Trial(TOO_LARGE)
    for _ in range(2):
        compiled.run({spec.name: odd_array(spec, random) for spec in compiled.module.inputs})
    return Trial(RAN)


def odd_array(spec: tilewright.Module | object, random: np.random.Generator) -> np.ndarray:
    """Return an input with what breaks kernels: zeros, NaN, infinities, the largest integers."""
    shape, dtype = spec.shape, np.dtype(_dtype(spec.dtype))  # type: ignore[attr-defined]
    if dtype == np.bool_:
        return random.integers(0, 2, shape).astype(np.bool_)
    if dtype.name in np.sctypeDict and dtype.kind in "iu":
        limits = np.iinfo(dtype)
        special = np.array([0, 1, limits.max, limits.min], dtype)
        small = random.integers(0, 5, shape).astype(dtype)
    else:
        special = np.array([0, np.nan, np.inf, -np.inf, 1e30]).astype(dtype)
        small = random.normal(size=shape).astype(dtype)
    odd = random.random(shape) < 0.2
    return np.where(odd, random.choice(special, shape), small).astype(dtype)


def _dtype(name: str) -> np.dtype:
    from tilewright.frontends.onnx.values import numpy_dtype

    return numpy_dtype(name)


def is_valid(data: bytes) -> bool:
    """Say whether the bytes are still a model that ONNX's checker accepts."""
    try:
        onnx.checker.check_model(data)
    except Exception:
        return False
    return True
