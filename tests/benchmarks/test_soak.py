"""Many threads that run one module for long: every output stays right."""

from benchmarks.soak import soak


def test_eight_threads_never_see_another_output():
    assert soak(8, 300)["wrong"] == 0
