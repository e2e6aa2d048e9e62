"""Serve one parent: requests and answers are JSON messages over an inherited socket.

Usage: python -m tilewright.tuner.worker MODULE SOCKET_FD MEMORY_BYTES CONFIG
"""

from __future__ import annotations

import importlib
import json
import resource
import signal
import sys
import traceback
from multiprocessing.connection import Connection

from tilewright.errors import TilewrightError
from tilewright.tuner.worker.lifetime import end_with_parent


def main() -> None:
    """Answer requests until the parent closes the socket or dies."""
    module, descriptor, memory_bytes, config = sys.argv[1:]
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    # tvm_ffi imports torch where it is installed: 0.4 GB and seconds for each process.
    sys.modules["torch"] = None  # type: ignore[assignment]
    handlers = importlib.import_module(module).handlers(json.loads(config))
    del sys.modules["torch"]
    limit = int(memory_bytes)
    if limit:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with Connection(int(descriptor)) as socket:
        socket.send_bytes(b'{"ready":true}')
        while True:
            try:
                request = json.loads(socket.recv_bytes())
            except EOFError:
                return
            socket.send_bytes(json.dumps(_answer(handlers, request)).encode())


def _answer(handlers: dict, request: dict) -> dict:
    """Return what the handler returns, or why it failed.

    Whatever a candidate makes a compiler raise costs that candidate only, so every exception
    becomes an answer; the parent records it.
    """
    try:
        return handlers[request.pop("command")](**request)
    except TilewrightError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    except MemoryError:
        return {"error": "out of memory"}
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = str(error).strip().splitlines()
        summary = text[-1] if text else ""
        return {"error": f"{type(error).__name__} in {where.name}: {summary}"[:500]}


if __name__ == "__main__":
    main()
