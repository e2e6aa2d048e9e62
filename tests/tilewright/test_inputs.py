"""Random inputs and .npz files."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from tilewright.errors import ModuleError
from tilewright.inputs import load_npz, random_inputs, save_npz


@dataclass(frozen=True)
class _Spec:
    name: str
    shape: tuple[int, ...]
    dtype: str


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint8", "bool"])
def test_random_inputs_have_the_shape_and_dtype_asked_for(dtype) -> None:
    (array,) = random_inputs([_Spec("a", (2, 3, 5), dtype)], seed=3).values()
    assert (array.shape, array.dtype.name) == ((2, 3, 5), dtype)
    assert array.std() > 0
    if dtype != "float32" and dtype != "float64":
        assert set(np.unique(array).tolist()) == {0, 1}


def test_npz_keeps_names_that_are_awkward(tmp_path) -> None:
    names = ["file", "allow_pickle", "/encoder/out:0", "a b", "x.npy"]
    arrays = {name: np.full((2,), i, np.float32) for i, name in enumerate(names)}
    save_npz(tmp_path / "a.npz", arrays)
    found = load_npz(tmp_path / "a.npz")
    assert list(found) == names
    for name in names:
        np.testing.assert_array_equal(found[name], arrays[name])
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_npy_file_is_refused_as_inputs(tmp_path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(ModuleError, match=r"unnamed array; save it with numpy\.savez"):
        load_npz(tmp_path / "a.npy")


def test_pickled_inputs_are_refused(tmp_path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([{}], dtype=object))
    with pytest.raises(ModuleError, match=r"not an \.npz file of plain arrays"):
        load_npz(tmp_path / "a.npz")
