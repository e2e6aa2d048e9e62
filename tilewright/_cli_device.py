"""The command `device`: lend this machine to tuners elsewhere."""

from __future__ import annotations

from typing import Annotated

import typer

from tilewright._cli_arguments import Errors


def mount(app: typer.Typer, errors: Errors) -> None:
    """Add the commands to the command line.

    Args:
        app: the command line.
        errors: context that turns errors meant for a person into a line and an exit status.
    """
    device = typer.Typer(help="Lend this machine to tuners elsewhere.", no_args_is_help=True)
    app.add_typer(device, name="device")

    @device.callback()
    def group() -> None:
        """Lend this machine to tuners elsewhere."""

    @device.command("serve")
    def serve_command(
        host: Annotated[
            str, typer.Option(help="Address to listen on; others than loopback let anyone in.")
        ] = "127.0.0.1",
        port: Annotated[int, typer.Option(min=1, max=65535, help="First port to try.")] = 9090,
        tracker: Annotated[
            str, typer.Option(metavar="HOST:PORT", help="TVM's RPC tracker to register with.")
        ] = "",
        key: Annotated[str, typer.Option(help="Kind of device to register as.")] = "",
        debug: Annotated[bool, typer.Option("--debug", help="Show the traceback.")] = False,
    ) -> None:
        """Serve tuners as one of TVM's RPC servers, until Ctrl-C."""
        with errors(debug):
            from tilewright.tuner.device.serve import serve

            serve(host, port, tracker, key, typer.echo)
