"""What every command has: examples below its help, and --quiet."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
from collections.abc import Callable, Iterator
from typing import Annotated, Any, get_type_hints

import typer

from tilewright._cli_examples import epilog
from tilewright._cli_progress import silenced

Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="Print errors only, and JSON where that is asked for."),
]


def finish(app: typer.Typer, words: tuple[str, ...] = ()) -> None:
    """Give every command of the program, those of its groups too, its examples and --quiet."""
    for command in app.registered_commands:
        assert command.callback is not None
        assert command.name is not None
        command.epilog = epilog(" ".join((*words, command.name)))
        command.callback = with_quiet(command.callback)
    for group in app.registered_groups:
        assert group.typer_instance is not None
        finish(group.typer_instance, (*words, str(group.name)))


def with_quiet(callback: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function of a command with one more option."""
    hints = get_type_hints(callback, include_extras=True)
    signature = inspect.signature(callback)
    given = [p.replace(annotation=hints[p.name]) for p in signature.parameters.values()]
    kind = inspect.Parameter.KEYWORD_ONLY
    option = inspect.Parameter("quiet", kind, default=False, annotation=Quiet)

    @functools.wraps(callback)
    def run(*args: Any, quiet: bool = False, **values: Any) -> Any:
        with _silence(quiet, bool(values.get("as_json"))):
            return callback(*args, **values)

    del run.__wrapped__  # its signature would be taken instead
    run.__signature__ = signature.replace(parameters=[*given, option])  # type: ignore[attr-defined]
    run.__annotations__ = {**hints, "quiet": Quiet}
    return run


@contextlib.contextmanager
def _silence(quiet: bool, has_json: bool) -> Iterator[None]:
    """Drop what would be printed to stdout, and progress."""
    if not quiet:
        yield
        return
    with contextlib.ExitStack() as stack:
        stack.enter_context(silenced())
        if not has_json:
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        yield
