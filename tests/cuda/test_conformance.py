"""ONNX's own node tests on the kernels for GPUs, by the emulation."""

import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from onnx.backend.test.runner import Runner

from benchmarks.forked import run_forked
from benchmarks.suite import as_array, load_cases
from tests.cuda.programs import run
from tilewright.api import lower_by
from tilewright.compiler.cuda.lower import lower_for_cuda
from tilewright.compiler.cuda.targets import parse_cuda_target
from tilewright.onnx_backend import TilewrightRep

pytestmark = pytest.mark.filterwarnings("ignore")

_PASSING = Path(__file__).parent.parent / "frontends" / "onnx" / "node_tests_passing.txt"
_AT_ONCE = 100
# What is neither a product nor a row of one-tensor blocks: one case of each form.
_OTHER_FORMS = (
    "test_argmax_negative_axis_keepdims_random_select_last_index",
    "test_maxpool_with_argmax_2d_precomputed_strides",
    "test_top_k_same_values_2d",
    "test_cumsum_1d_reverse_exclusive",
    "test_scatter_elements_with_duplicate_indices",
    "test_scatternd_multiply",
    "test_nonmaxsuppression_two_classes",
    "test_unique_sorted_with_axis_3d",
    "test_compress_negative_axis",
    "test_maxunpool_export_with_output_shape",
)


def check_case(name, backwards=False):
    """Lower a case for a GPU, run it thread by thread, and compare; return its schedules."""
    case = load_cases("node")[name]
    prepared = TilewrightRep(case.model)
    given, wanted = ([as_array(value) for value in values] for values in case.data_sets[0])
    feeds = prepared._named(given)
    fixed = {key: array for key, array in feeds.items() if key in prepared.special}
    feeds = {key: array for key, array in feeds.items() if key not in fixed}
    target = parse_cuda_target("cuda:sm_90")
    lowering = partial(lower_for_cuda, target=target, precision="fp32")
    shapes = {key: array.shape for key, array in feeds.items()}
    lowered = lower_by(lowering, case.model, shapes, fixed, lambda _stage: None)[0]
    results = run(lowered, feeds, backwards)
    found = [_output(item.name, results) for item in case.model.graph.output]
    Runner.assert_similar_outputs(wanted, found, case.rtol, case.atol)
    return [name for names in lowered.schedules.values() for name in names]


def _output(name, results):
    """Return an output cut to the size that data decided, or a sequence or absent value."""
    if name not in results:
        return [results[key] for key in results if key.startswith(f"{name}[")] or None
    extents = results.get(f"{name}.extents")
    whole = results[name]
    return whole if extents is None else whole[tuple(slice(int(extent)) for extent in extents)]


@pytest.mark.parametrize("name", _OTHER_FORMS)
def test_operators_of_other_forms_are_right(name):
    check_case(name, backwards=True)  # the slow test runs forwards


@pytest.mark.slow
def test_all_node_tests_that_pass_on_processors_pass():
    names = _PASSING.read_text().split()
    load_cases("node")  # before the fork
    outcomes = {}
    for start in range(0, len(names), _AT_ONCE):  # a process keeps what it has loaded
        outcomes |= run_forked(names[start : start + _AT_ONCE], _outcome)
    failed = {name: outcome for name, outcome in outcomes.items() if outcome != "pass"}
    assert not failed, (len(failed), len(outcomes), failed)


def _outcome(name):
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            check_case(name)
        except Exception as error:  # the rest must run, too
            return f"{type(error).__name__}: {error}"[:300]
    return "pass"
