"""Read result files, tuning logs and modules, and write one page about them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tilewright.errors import MeasureError
from tilewright.report import comparison, html, markdown, tuning
from tilewright.report.module import read_module
from tilewright.report.quantization import read_quantization

FORMATS = (".html", ".md")


def write_report(sources: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]) -> Path:
    """Write a report of modules (.so), tuning logs (.jsonl) and result files.

    A module that runs on this processor is measured, which takes some seconds.

    Args:
        sources: modules, logs, what `quantize --json`, `bench` or `bench-ops` printed or wrote.
        out: an .html page that needs no network, or an .md file.

    Raises:
        MeasureError: a source cannot be read or is of no known kind, or `out` cannot be written.
    """
    target = Path(out)
    if target.suffix not in FORMATS:
        raise MeasureError(f"cannot write {target}: its name must end in {' or '.join(FORMATS)}")
    sections = [_read(Path(source)) for source in sources]
    render = html.render if target.suffix == ".html" else markdown.render
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(render(sections))
        os.replace(temporary, target)
    except OSError as error:
        raise MeasureError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return target


def _read(path: Path) -> html.Section:
    if path.suffix == ".so":
        return read_module(path)
    if path.suffix == ".jsonl":
        return tuning.read_log(path)
    try:
        content: Any = json.loads(path.read_text())
    except OSError as error:
        raise MeasureError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise MeasureError(
            f"{path} is neither a module (.so), a tuning log (.jsonl) nor a result (JSON): {error}"
        ) from error
    if not isinstance(content, dict):
        raise MeasureError(f"{path} is not a result: expected a JSON object")
    try:
        if content.get("kind") in ("operators", "models"):
            return comparison.read_contest(content)
        if "layers" in content and "samples" in content:
            return read_quantization(content)
        if "rows" in content and all("model" in row for row in content["rows"]):
            return comparison.read_untuned(content)
    except (KeyError, TypeError, ValueError) as error:
        raise MeasureError(f"{path} is damaged: {type(error).__name__} {error}") from error
    raise MeasureError(
        f"{path} is no known kind of result; known are those of 'tilewright bench-ops', "
        "'tilewright bench', 'tilewright quantize --json', tuning logs (.jsonl) and modules (.so)"
    )
