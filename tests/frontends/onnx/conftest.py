"""Leaves the whole node suite out unless `-m slow` asks for it."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect this folder's slow tests in an ordinary run."""
    if "slow" in config.option.markexpr:
        return
    slow = [item for item in items if HERE in item.path.parents and "slow" in item.keywords]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]
