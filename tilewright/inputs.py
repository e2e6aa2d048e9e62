"""Inputs for a module: random ones, or those of an .npz file."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Mapping
from typing import Protocol

import numpy as np

from tilewright.errors import ModuleError


class Spec(Protocol):
    """What a module says of one input."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> str: ...


def random_inputs(specs: Iterable[Spec], seed: int = 0) -> dict[str, np.ndarray]:
    """Draw inputs: floats from a standard normal, integers and booleans from {0, 1}.

    Integers stay that small because they mostly are indices and masks.
    """
    rng = np.random.default_rng(seed)
    drawn = {}
    for spec in specs:
        dtype = np.dtype(spec.dtype)
        if dtype.kind in "biu":
            drawn[spec.name] = rng.integers(0, 2, spec.shape).astype(dtype)
        else:
            drawn[spec.name] = rng.standard_normal(spec.shape).astype(dtype)
    return drawn


def load_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read the arrays of an .npz file by name.

    Raises:
        ModuleError: the file cannot be read, or is not an .npz file of plain arrays.
    """
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ModuleError(f"{path} holds one unnamed array; save it with numpy.savez")
        with archive:
            return dict(archive)
    except OSError as error:
        raise ModuleError(f"cannot read the inputs {path}: {error.strerror or error}") from error
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        reason = "" if "pickle" in str(error) else f": {error}"
        raise ModuleError(
            f"{path} is not an .npz file of plain arrays, as numpy.savez writes it{reason}"
        ) from error


def save_npz(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays by name, through a temporary file beside the target.

    Raises:
        ModuleError: the file cannot be written.
    """
    folder, name = os.path.split(os.fspath(path))
    temporary = os.path.join(folder, f".{name}.{os.getpid()}.tmp")
    try:
        # Not numpy.savez: a name such as "file" would clash with its own arguments.
        with zipfile.ZipFile(temporary, "w") as archive:
            for key, array in arrays.items():
                with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
        os.replace(temporary, path)
    except OSError as error:
        raise ModuleError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if os.path.lexists(temporary):
            os.unlink(temporary)
