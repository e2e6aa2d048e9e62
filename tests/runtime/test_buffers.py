"""Output memory is reused, but never while somebody can still see it."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.runtime.buffers import ReusedBuffer, empty_aligned


def _counting_buffer(shape=(3, 5)):
    allocated = []

    def allocate(size_bytes):
        allocated.append(size_bytes)
        return np.empty(size_bytes + 64, np.uint8)

    return ReusedBuffer(shape, np.dtype(np.float32)), allocate, allocated


def test_a_loop_that_replaces_its_result_allocates_twice():
    buffer, allocate, allocated = _counting_buffer()
    result = None
    for _ in range(10):
        result = buffer.take(allocate)
    assert result.shape == (3, 5)
    assert len(allocated) == 2


def test_views_keep_the_memory():
    buffer, allocate, allocated = _counting_buffer()
    kept = [buffer.take(allocate)[1:], memoryview(buffer.take(allocate))]
    for index, view in enumerate(kept):
        np.asarray(view)[...] = index
    for _ in range(5):
        buffer.take(allocate)[...] = 9
    assert all((np.asarray(view) == index).all() for index, view in enumerate(kept))
    assert len(allocated) > 2


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=30))
@settings(deadline=None, max_examples=100)
def test_no_two_living_results_share_memory(steps):
    buffer, allocate, _ = _counting_buffer()
    alive = []
    for number, (drop, which) in enumerate(steps):
        if drop and alive:
            del alive[which % len(alive)]
        else:
            array = buffer.take(allocate)
            array[...] = number
            alive.append((array, number))
            del array
    assert all((array == number).all() for array, number in alive)


def test_arrays_are_aligned():
    buffer = ReusedBuffer((7,), np.dtype(np.int8))
    for array in (buffer.take(), empty_aligned((3, 1), "float64"), empty_aligned((), "int32")):
        assert array.ctypes.data % 64 == 0
        assert array.flags.c_contiguous
