"""A whole module, loaded or linked into a program, is clean under memory and thread checkers."""

import pytest

from benchmarks.sanitizers import FORMATS, TOOLS, check


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("tool", TOOLS)
def test_a_module_is_clean(tool, form, tmp_path):
    found = check(tool, form, tmp_path)
    if found.startswith("not run: "):
        pytest.skip(found.removeprefix("not run: "))
    assert found == "clean"
