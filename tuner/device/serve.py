"""Lend this machine as one of TVM's RPC servers: TVM's engine, with a careful default."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

from tilewright.errors import MeasureError, TargetError
from tilewright.tuner.device.rpc import parse_host_port

_PORTS = 100


def is_loopback(host: str) -> bool:
    """Tell whether an address is reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def serve(host: str, port: int, tracker: str, key: str, say: Callable[[str], None]) -> None:
    """Serve until interrupted.

    Args:
        host: address to listen on. Whoever reaches it runs code here as this user: the protocol
            knows no passwords.
        port: first port to try.
        tracker: host:port of TVM's RPC tracker, or "".
        key: kind of device, for the tracker.
        say: prints a line.

    Raises:
        TargetError: the tracker is not host:port, or comes without a key.
        MeasureError: no port is free.
    """
    if bool(tracker) != bool(key):
        raise TargetError("--tracker host:port and --key belong together")
    where = parse_host_port(tracker, "--tracker") if tracker else None
    from tvm import rpc

    if not is_loopback(host):
        say(
            f"warning: {host} is not loopback; whoever reaches this port can run any code here as "
            "you, without a password. Use a network that you trust, or an ssh tunnel"
        )
    try:
        server = rpc.Server(host, port, port + _PORTS, key=key, tracker_addr=where, silent=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise MeasureError(f"cannot listen on {host}:{port}: {error}") from error
    try:
        say(f"serving on {server.host}:{server.port}" + (f" as '{key}'" if key else ""))
        server.proc.join()
    except KeyboardInterrupt:
        say("stopped")
    finally:
        server.terminate()
