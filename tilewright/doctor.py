"""Say what this machine and this installation can do, as plain data."""

from __future__ import annotations

import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import tilewright
from tilewright.errors import TargetError, TilewrightError

_PACKAGES = ("apache-tvm", "apache-tvm-ffi", "numpy", "onnx", "xgboost", "networkx", "scipy")
_TOOLS = {
    "objdump": "inner loops in 'profile'",
    "llvm-mca": "'tune --measure mca'",
    "qemu-aarch64": "running aarch64 modules here",
    "qemu-arm": "running armv7 modules here",
    "ssh": "'tune --device ssh://...'",
}


def examine() -> dict[str, Any]:
    """Return what is installed and what works.

    Returns:
        "tilewright", "python" and "system": versions; "processor": the native target, or why there
        is none; "packages": name -> version or None; "compilers": architecture -> command, or why
        there is none; "tools": name -> path or None, and what it is for; "peers": name -> why it
        cannot be compared with, or None; "logs": path -> records, how many are for this processor,
        and warnings; "problems": what keeps tilewright from working here.
    """
    processor = _processor()
    compilers = {name: _compiler(name) for name in ("native", "aarch64", "armv7")}
    packages = {name: _version(name) for name in _PACKAGES}
    problems = [f"{name} is not installed" for name, found in packages.items() if found is None]
    if "unavailable" in processor:
        problems.append(processor["unavailable"])
    if "unavailable" in compilers["native"]:
        problems.append(compilers["native"]["unavailable"])
    return {
        "tilewright": tilewright.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": processor,
        "packages": packages,
        "compilers": compilers,
        "tools": {
            name: {"path": shutil.which(name), "for": purpose} for name, purpose in _TOOLS.items()
        },
        "peers": _peers(),
        "logs": _logs(),
        "problems": problems,
    }


def _processor() -> dict[str, Any]:
    from tilewright.compiler.targets import parse_target

    try:
        target = parse_target("native")
    except TargetError as error:
        return {"unavailable": str(error)}
    return {
        "name": target.mcpu,
        "cores": target.cores,
        "features": list(target.features),
        "vector_bits": target.vector_bits,
        "vector_registers": target.vector_registers,
        "caches_bytes": [target.l1_bytes, target.l2_bytes, target.l3_bytes],
    }


def _compiler(architecture: str) -> dict[str, str]:
    from tilewright.compiler.toolchain import find_c_compiler

    try:
        command = find_c_compiler(None if architecture == "native" else architecture)
    except TilewrightError as error:
        return {"unavailable": str(error)}
    return {"command": " ".join(command)}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _peers() -> dict[str, str | None]:
    from tilewright.baselines.peers import PEERS

    return {name: peer.missing() for name, peer in PEERS.items()}


def _logs() -> dict[str, dict[str, Any]]:
    from tilewright.compiler.targets import parse_target
    from tilewright.tuner.log import Log
    from tilewright.tuner.lookup import default_logs
    from tilewright.tuner.records import applies_to

    try:
        native = parse_target("native")
    except TargetError:
        native = None
    found = {}
    for path in default_logs():
        contents = Log(path).read()
        found[str(path)] = {
            "records": len(contents.records),
            "for_this_processor": sum(
                native is not None and applies_to(record.target, native)
                for record in contents.records
            ),
            "warning": contents.warning(path),
        }
    return found
