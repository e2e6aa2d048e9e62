"""The command line: each command parses its arguments, calls one function of the API and prints.

Results go to stdout, progress and errors to stderr. Exit status: 0 done, 1 a TilewrightError (one
line), 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

import tilewright
from tilewright import _cli_arguments as arguments
from tilewright import _cli_baseline
from tilewright import _cli_device as device
from tilewright import _cli_everywhere as everywhere
from tilewright import _cli_explain as explaining
from tilewright import _cli_output as output
from tilewright import _cli_profile as profiling
from tilewright import _cli_quantize as quantizing
from tilewright import _cli_size as size
from tilewright import _cli_trust as trust
from tilewright import _cli_tune as tuning
from tilewright import _cli_tune_gpu as tuning_gpu
from tilewright._cli_arguments import AsJson, Debug
from tilewright.errors import TilewrightError

_INTERRUPTED = 130

app = typer.Typer(
    name="tilewright",
    help="Compile an ONNX model into one deployable file.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="An ONNX file.", show_default=False)]
Target = Annotated[str, typer.Option(help="'native', or a name from 'tilewright targets'.")]
Shapes = Annotated[
    list[str] | None,
    typer.Option("--shape", metavar="NAME=1,3,224,224", help="Shape of an input; may be repeated."),
]
Constants = Annotated[
    list[str] | None,
    typer.Option(
        "--constant",
        metavar="NAME=VALUE",
        help="Value of an input that never changes: a number, a JSON list, or @FILE.npy.",
    ),
]


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if version:
        typer.echo(f"tilewright {tilewright.__version__}")
        raise typer.Exit


@app.command("compile")
def compile_command(
    model: Model,
    out: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
    target: Target = "native",
    shape: Shapes = None,
    constant: Constants = None,
    log: Annotated[
        list[Path] | None,
        typer.Option(help="Tuning log; may be repeated. Default: the package's and the user's."),
    ] = None,
    tuned: Annotated[
        bool, typer.Option("--tuned/--untuned", help="Whether to use tuning logs.")
    ] = True,
    require_tuned: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Fail where less of the expected time is tuned."),
    ] = None,
    integer_only: Annotated[
        bool,
        typer.Option(
            "--integer-only",
            help="No floats between the first quantize and the last dequantize operator.",
        ),
    ] = False,
    dump_ir: Annotated[
        Path | None, typer.Option(help="Folder for the stages of the compile as text.")
    ] = None,
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            help="'so': one file to load. 'static': an object file to link, and the weights. "
            "'c': a folder for one's own build.",
        ),
    ] = "so",
    precision: Annotated[
        str,
        typer.Option(
            help="Of products on a GPU: fp32, or by tensor cores tf32, fp16, bf16; int8 for a "
            "quantized model."
        ),
    ] = "fp32",
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Say for each operator whether it is tuned.")
    ] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Compile a model into one deployable file."""
    shapes, constants = arguments.parse_shapes(shape), arguments.parse_constants(constant)
    with _errors(debug), output.progress() as progress:
        if format_ != "c":
            arguments.check_writable(out)
        start = time.perf_counter()
        module = tilewright.compile(
            *(model, target, shapes, constants),
            logs=log if tuned else (),
            require_tuned=require_tuned,
            integer_only=integer_only,
            dump_ir=dump_ir,
            format=format_,
            precision=precision,
            progress=progress,
        )
        module.save(out)
        seconds = time.perf_counter() - start
    if as_json:
        found = {"file": str(out), "target": target, "seconds": seconds, **module.report}
        _print(found, as_json, None)
        return
    output.print_compiled(out, target, module.report, seconds)
    tuning.print_coverage(module.report["tuning"], verbose)


@app.command("run")
def run_command(
    module: Annotated[Path, typer.Argument(metavar="MODULE", help="A compiled module.")],
    random: Annotated[bool, typer.Option("--random", help="Run on random inputs.")] = False,
    seed: Annotated[int, typer.Option(help="Of the random inputs.")] = 0,
    input_: Annotated[
        Path | None, typer.Option("--input", help="An .npz file: input name -> array.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--output", help="An .npz file for the outputs.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Default: TILEWRIGHT_NUM_THREADS, or all.")
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Run a module once on random inputs or on those of a file."""
    from tilewright.inputs import load_npz, random_inputs, save_npz

    if random == (input_ is not None):
        raise typer.BadParameter("give one of --random and --input FILE.npz")
    with _errors(debug):
        loaded = tilewright.load(module, threads)
        feed = random_inputs(loaded.inputs, seed) if input_ is None else load_npz(input_)
        results = loaded.run(feed)
        if out is not None:
            save_npz(out, results)
    _print(output.summaries(results), as_json, output.print_arrays)


@app.command("inspect")
def inspect_command(
    path: Annotated[Path, typer.Argument(metavar="MODEL|MODULE", help="Either file.")],
    layouts: Annotated[
        bool, typer.Option("--layouts", help="Choose the layouts of a model, and show them.")
    ] = False,
    dot: Annotated[Path | None, typer.Option(help="Draw the layouts: a DOT file.")] = None,
    svg: Annotated[Path | None, typer.Option(help="Draw the layouts: an SVG file.")] = None,
    target: Target = "native",
    shape: Shapes = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show what a model or a module is: inputs, outputs, operators, target, layouts."""
    shapes = arguments.parse_shapes(shape)
    with _errors(debug):
        result = tilewright.inspect(
            path, layouts=layouts, target=target, shapes=shapes, dot=dot, svg=svg
        )
    _print(result, as_json, output.print_inspection)


@app.command("targets")
def targets_command(as_json: AsJson = False, debug: Debug = False) -> None:
    """List the processors that can be compiled for."""
    with _errors(debug):
        result = tilewright.targets()
    _print(result, as_json, output.print_targets)


def main() -> None:
    """Run the command line; the console script's entry."""
    app(prog_name="tilewright")  # also for python -m; completion is named after it


def _print(result: Any, as_json: bool, as_text: Any) -> None:
    if as_json:
        typer.echo(json.dumps(result, indent=2, default=_plain))
    else:
        as_text(result)


def _plain(value: Any) -> Any:
    """Give json what numpy and the like are made of."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return str(value)


@contextlib.contextmanager
def _errors(debug: bool) -> Iterator[None]:
    """Turn an error meant for a person into one line and an exit status."""
    with _Interrupts() as interrupts:
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            if debug or not (interrupts.seen or isinstance(error, TilewrightError)):
                raise
            if interrupts.seen:
                print("interrupted", file=sys.stderr)
                raise typer.Exit(_INTERRUPTED) from None
            line = " ".join(part.strip() for part in str(error).splitlines() if part.strip())
            print(f"error: {line}", file=sys.stderr)
            raise typer.Exit(1) from None


class _Interrupts:
    """Remembers Ctrl-C: TVM turns a KeyboardInterrupt in a Python callback into another error."""

    seen = False

    def __enter__(self) -> _Interrupts:
        self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _handle(self, _number: int, _frame: object) -> None:
        self.seen = True
        raise KeyboardInterrupt


_cli_baseline.register(app, _errors)


for _commands in (quantizing, profiling, explaining, size, tuning, tuning_gpu, device, trust):
    _commands.mount(app, _errors)
everywhere.finish(app)
