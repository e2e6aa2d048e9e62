"""Write docs/api.md from the docstrings of the public names: `python docs/make_api.py`.

`--check` writes nothing, and ends with status 1 if the page is not current.
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

import tilewright

PAGE = Path(__file__).resolve().parent / "api.md"
_HEAD = """# Python API

Made from the docstrings by `python docs/make_api.py`; a test checks that it is current. Names are
imported when they are first used: loading and running a module needs no TVM.

"""
_SECTION = re.compile(r"^(Args|Returns|Raises|Attributes|Yields):$", re.MULTILINE)


def page() -> str:
    """Return the page."""
    names = tilewright.__all__
    links = ", ".join(f"[`{name}`](#{_anchor(name)})" for name in names)
    return _HEAD + links + "\n\n" + "\n".join(_entry(name) for name in names)


def _anchor(name: str) -> str:
    return name.lower()


def _entry(name: str) -> str:
    item = getattr(tilewright, name)
    parts = [f"## {name}", "", _signature(name, item), "", _docstring(item), ""]
    if inspect.isclass(item) and not issubclass(item, Exception):
        for method, function in vars(item).items():
            if isinstance(function, property):
                parts += [f"### {name}.{method}", "", _docstring(function), ""]
            elif inspect.isfunction(function) and (
                not method.startswith("_") or method in ("__init__", "__call__")
            ):
                shown = name if method == "__init__" else f"{name}.{method}"
                if method == "__init__" and not function.__doc__:
                    continue  # nobody but the package makes one
                parts += [f"### {shown}", "", _signature(shown, function), ""]
                parts += [_docstring(function), ""]
    return "\n".join(parts)


def _signature(name: str, item: Any) -> str:
    if inspect.isclass(item):
        return f"    class {name}"
    parameters = str(_unquoted(inspect.signature(item)))
    parameters = parameters.replace("(self, ", "(").replace("(self)", "()")
    parameters = re.sub(r"<function <lambda> at 0x[0-9a-f]+>", "...", parameters)
    line = f"    {name}{parameters}"
    if len(line) <= 96:
        return line
    inner, _, result = parameters.rpartition(") -> ")
    parts, depth = [""], 0
    for character in inner[1:]:
        depth += (character in "[({") - (character in "])}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    lines = "".join(f"        {part.strip()},\n" for part in parts)
    return f"    {name}(\n{lines}    ) -> {result}"


class _Text(str):
    """An annotation that is shown as it is written."""

    def __repr__(self) -> str:
        return str(self)


def _unquoted(signature: inspect.Signature) -> inspect.Signature:
    given = [
        parameter.replace(annotation=_Text(parameter.annotation))
        if isinstance(parameter.annotation, str)
        else parameter
        for parameter in signature.parameters.values()
    ]
    returned = signature.return_annotation
    if isinstance(returned, str):
        returned = _Text(returned)
    return signature.replace(parameters=given, return_annotation=returned)


def _docstring(item: Any) -> str:
    """Return a docstring as Markdown: sections become bold words, their entries lists."""
    text = inspect.getdoc(item) or ""
    lines = []
    in_list = False
    for line in text.splitlines():
        if _SECTION.match(line):
            lines += ["", f"**{line[:-1]}**", ""]
            in_list = True
        elif in_list and line.startswith("    "):
            entry = line[4:]
            lines.append(f"  {entry.strip()}" if entry.startswith(" ") else f"- {entry}")
        else:
            in_list = in_list and not line
            lines.append(line)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def main() -> int:
    """Write the page, or check it; return the exit code."""
    if "--check" in sys.argv[1:]:
        return int(not PAGE.exists() or PAGE.read_text() != page())
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
