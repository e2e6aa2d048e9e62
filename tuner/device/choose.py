"""Where candidates run, as a person says it: boards, a farm, a model, or this machine."""

from __future__ import annotations

import os
from dataclasses import dataclass

from tilewright.compiler.targets import Target
from tilewright.errors import TargetError
from tilewright.runtime.remote import parse_address, ssh_from
from tilewright.tuner.timing import Timer

MEASURES = ("time", "mca")


@dataclass(frozen=True)
class DeviceOptions:
    """Devices to tune on; none is this machine.

    Attributes:
        devices: addresses of boards, `ssh://user@host` or `exec:command`.
        tracker: host:port of TVM's RPC tracker, or "".
        key: of its devices.
        measure: "time", or "mca" for cycles of a model where there is no device.
        patience_s: how long all devices may be lost before tuning ends.
    """

    devices: tuple[str, ...] = ()
    tracker: str = ""
    key: str = ""
    measure: str = "time"
    patience_s: float = 120.0

    def __post_init__(self) -> None:
        if self.measure not in MEASURES:
            raise TargetError(f"measure '{self.measure}' is unknown; known are time, mca")
        given = [bool(self.devices), bool(self.tracker), self.measure == "mca"]
        if sum(given) > 1:
            raise TargetError("give one of --device, --tracker and --measure mca")
        if bool(self.tracker) != bool(self.key):
            raise TargetError("--tracker host:port and --key belong together")


def open_timer(
    options: DeviceOptions, target: Target, threads: int
) -> tuple[Timer | None, str | None]:
    """Return what runs candidates, and the module that builds them for it; None is the usual.

    Raises:
        TargetError: an address is none, or there is no compiler for the target or no model of it.
        MeasureError: no device answers.
        MissingExtraError: TVM's tracker needs a package that is not installed.
    """
    if options.measure == "mca":
        from tilewright.tuner.device import mca_timer

        return mca_timer.ModelTimer(target), mca_timer.BUILD_MODULE
    if options.tracker:
        from tilewright.tuner.device import rpc
        from tilewright.tuner.device.pool import DevicePool

        host, port = rpc.parse_host_port(options.tracker, "--tracker")
        count = rpc.count_servers(host, port, options.key)
        sessions = [rpc.RpcDevice(host, port, options.key, number) for number in range(count)]
        return DevicePool(sessions, options.patience_s), rpc.BUILD_MODULE
    if options.devices:
        from tilewright.tuner.device.board import BoardDevice
        from tilewright.tuner.device.pool import DevicePool

        addresses = [parse_address(text) for text in options.devices]
        ssh = ssh_from(os.environ)
        boards = [BoardDevice(a, target.architecture, threads, ssh) for a in addresses]
        return DevicePool(boards, options.patience_s), None
    return None, None
