"""The memory plan: nothing that is needed at the same call overlaps, and little is wasted."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.programs import binary_kernel, copy_program, mlp_program, unary_kernel
from tilewright.compiler.memory import (
    ALIGNMENT_BYTES,
    Lifetime,
    padded,
    peak_live_bytes,
    plan_memory,
    plan_offsets,
)
from tilewright.compiler.program import Call, Program, Tensor, TensorSpec

_LIFETIMES = st.lists(
    st.builds(
        lambda size, first, length: Lifetime(padded(size), first, first + length),
        st.integers(0, 5000),
        st.integers(0, 20),
        st.integers(0, 8),
    ),
    max_size=25,
)


@given(_LIFETIMES)
@settings(deadline=None, max_examples=200)
def test_blocks_needed_at_the_same_call_never_overlap(lifetimes):
    offsets = plan_offsets(lifetimes)
    for i, a in enumerate(lifetimes):
        assert offsets[i] % ALIGNMENT_BYTES == 0
        for j, b in enumerate(lifetimes[:i]):
            apart = (
                offsets[i] + a.size_bytes <= offsets[j] or offsets[j] + b.size_bytes <= offsets[i]
            )
            assert apart or a.last < b.first or b.last < a.first


@given(_LIFETIMES)
@settings(deadline=None, max_examples=100)
def test_arena_lies_between_the_lower_bound_and_no_sharing(lifetimes):
    offsets = plan_offsets(lifetimes)
    arena = max((at + b.size_bytes for at, b in zip(offsets, lifetimes, strict=True)), default=0)
    assert peak_live_bytes(lifetimes) <= arena <= sum(b.size_bytes for b in lifetimes)


def test_a_chain_needs_only_two_buffers():
    chain = [Lifetime(padded(1000), i, i + 1) for i in range(50)]
    offsets = plan_offsets(chain)
    assert max(offsets) + padded(1000) == 2 * padded(1000) == peak_live_bytes(chain)


def test_mlp_plan_uses_callers_buffers_and_shares_storage_of_aliases():
    program, _ = mlp_program()
    plan = plan_memory(program)
    spaces = [location.space for location in plan.locations]
    assert spaces == [
        *("input", "weights", "arena", "arena", "weights", "arena", "arena", "input", "output")
    ]
    assert plan.locations[5] == plan.locations[6]
    assert plan.copies == ()
    assert plan.arena_bytes >= plan.peak_live_bytes > 0


def test_padding_keeps_64_bytes_behind_every_tensor_free():
    for size in (0, 1, 63, 64, 65, 1000):
        assert padded(size) - size >= 64
        assert padded(size) % 64 == 0


def _program(outputs, data=None):
    """y = x + 1 with a constant beside it; `outputs` are tensor ids."""
    constant = np.arange(4, dtype=np.float32) if data is None else data
    return Program(
        tensors=(
            Tensor("x", (4,), "float32", "input"),
            Tensor("y", (4,), "float32", "intermediate"),
            Tensor("c", (4,), "float32", "constant", constant),
            Tensor("same", (4,), "float32", "constant", constant.copy()),
            Tensor("z", (4,), "float32", "intermediate"),
        ),
        calls=(Call("add", (0, 2, 1), "add"), Call("add", (1, 3, 4), "add")),
        inputs=(0,),
        outputs=outputs,
        kernels={"add": binary_kernel((4,), lambda a, b: a + b)},
        input_specs=(TensorSpec("x", (4,), "float32"),),
        output_specs=tuple(TensorSpec(f"o{i}", (4,), "float32") for i in range(len(outputs))),
    )


def test_equal_constants_are_stored_once():
    plan = plan_memory(_program((4,)))
    assert len(plan.weights) == 1
    assert plan.locations[2] == plan.locations[3]


def test_outputs_that_cannot_be_written_in_place_are_copied():
    plan = plan_memory(_program((4, 4, 0, 2)))
    assert plan.copies == ((4, 1), (0, 2), (2, 3))


def test_unused_constants_are_left_out():
    program = copy_program()
    extra = Tensor("unused", (3,), "float32", "constant", np.ones(3, np.float32))
    plan = plan_memory(
        Program(
            tensors=(*program.tensors, extra),
            calls=program.calls,
            inputs=program.inputs,
            outputs=program.outputs,
            kernels=program.kernels,
            input_specs=program.input_specs,
            output_specs=program.output_specs,
        )
    )
    assert plan.weights == ()


@pytest.mark.parametrize("shape", [(), (0,), (3, 1)])
def test_odd_shapes_are_placed(shape):
    program = Program(
        tensors=(
            Tensor("x", shape, "float32", "input"),
            Tensor("m", shape, "float32", "intermediate"),
            Tensor("y", shape, "float32", "output"),
        ),
        calls=(Call("k", (0, 1), "a"), Call("k", (1, 2), "b")),
        inputs=(0,),
        outputs=(2,),
        kernels={"k": unary_kernel(shape, lambda x: x + 1)},
        input_specs=(TensorSpec("x", shape, "float32"),),
        output_specs=(TensorSpec("y", shape, "float32"),),
    )
    assert plan_memory(program).arena_bytes == padded(program.tensors[1].size_bytes)
