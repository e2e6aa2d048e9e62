"""The command `size`: what the bytes of a module are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from tilewright import _cli_output as output
from tilewright._cli_arguments import AsJson, Debug, Errors

_MEANING = {
    "kernels": "machine code of the operators",
    "runtime": "machine code of the runtime",
    "data": "constants and tables of the code",
    "elf": "headers, symbols, padding to a page",
    "weights": "packed weights",
    "description": "names, shapes, versions",
    "trailer": "checksums",
}
_SHOWN_KERNELS = 10


def mount(app: typer.Typer, errors: Errors) -> None:
    """Add the command to the command line.

    Args:
        app: the command line.
        errors: context that turns errors meant for a person into a line and an exit status.
    """

    @app.command("size")
    def size_command(
        module: Annotated[Path, typer.Argument(metavar="MODULE", help="A compiled module.")],
        as_json: AsJson = False,
        debug: Debug = False,
    ) -> None:
        """Show what the bytes of a module are."""
        from tilewright.module_size import module_size

        with errors(debug):
            sizes = module_size(module)
        if as_json:
            typer.echo(json.dumps(sizes, indent=2))
            return
        rows = [(name, sizes[name], meaning) for name, meaning in _MEANING.items()]
        output.print_sizes("part", [*rows, ("file", sizes["file"], "all of it")])
        kernels = list(sizes["by_kernel"].items())
        shown = [(name, size, "") for name, size in kernels[:_SHOWN_KERNELS]]
        rest = kernels[_SHOWN_KERNELS:]
        if rest:
            shown.append((f"{len(rest)} others", sum(size for _, size in rest), ""))
        output.print_sizes("kernel", shown)
