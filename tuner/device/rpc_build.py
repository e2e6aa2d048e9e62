"""The building process for TVM's RPC servers: candidates that TVM's runtime can load and call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tilewright.compiler.targets import Target
from tilewright.compiler.toolchain import run_c_compiler
from tilewright.tuner.worker.build import KERNEL, Builder, commands
from tilewright.tuner.worker.run import MAX_ARGUMENTS

# TVM's calling convention (tvm/ffi/c_api.h of apache-tvm-ffi 0.1) around the plain kernel: an
# argument is a pointer to a DLTensor, or to an object with one behind its header.
_SOURCE = """
#include <stdint.h>
typedef struct { int32_t type; uint32_t padding; void *pointer; } any;
enum { DLTENSOR = 7, HEADER_BYTES = 24, MOST = %(count)d };
extern int tw_kernel_%(kernel)s(%(types)s);
int __tvm_ffi_%(kernel)s(void *self, const any *arguments, int32_t count, any *result) {
  void *a[MOST] = {0};
  (void)self;
  for (int32_t i = 0; i < count && i < MOST; ++i) {
    char *tensor = arguments[i].pointer;
    a[i] = *(void **)(arguments[i].type == DLTENSOR ? tensor : tensor + HEADER_BYTES);
  }
  result->type = 0;
  return tw_kernel_%(kernel)s(%(arguments)s);
}
"""


def handlers(config: Mapping[str, Any]) -> dict[str, Callable[..., dict[str, Any]]]:
    """Return the commands of this process."""
    return commands(_RpcBuilder(config))


class _RpcBuilder(Builder):
    def _link(self, code: bytes, path: Path, target: Target) -> None:
        """Link one object with the function that TVM calls."""
        wrapper = path.with_suffix(".c")
        wrapper.write_text(
            _SOURCE
            % {
                "kernel": KERNEL,
                "count": MAX_ARGUMENTS,
                "types": ", ".join(["void *"] * MAX_ARGUMENTS),
                "arguments": ", ".join(f"a[{i}]" for i in range(MAX_ARGUMENTS)),
            }
        )
        object_path = path.with_suffix(".o")
        object_path.write_bytes(code)
        flags = ("-O1", "-shared", "-fPIC", "-Wl,-Bsymbolic")
        run_c_compiler([*flags, wrapper, object_path, "-o", path], target.architecture)
        wrapper.unlink()
        object_path.unlink()
