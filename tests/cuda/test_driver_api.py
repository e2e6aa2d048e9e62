"""The driver API as the runtime declares it, against NVIDIA's own header."""

import subprocess
from importlib import resources
from pathlib import Path

import pytest

from tilewright.compiler.cuda.nvcc import find_tool

_NVCC = find_tool("nvcc")
_HEADER = _NVCC and next(
    (
        folder / "cuda.h"
        for folder in (_NVCC.parent.parent / "include", Path("/usr/local/cuda/include"))
        if (folder / "cuda.h").exists()
    ),
    None,
)

# Parameters agree in number, size and kind; names in the library are those of the header.
_CHECK = """
#include <cuda.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <array>
#include <type_traits>
namespace ours {
#include "tw_cuda.h"
}
template <class R, class... A>
constexpr std::array<int, 1 + sizeof...(A)> form(R (*)(A...)) {
  return {(int)sizeof(R), (int)(sizeof(A) + 100 * std::is_pointer<A>::value)...};
}
template <size_t n, size_t m>
constexpr bool same(std::array<int, n> a, std::array<int, m> b) {
  if (n != m) return false;
  for (size_t i = 0; i < n; ++i)
    if (a[i] != b[i]) return false;
  return true;
}
#define CHECK(symbol, name, parameters) \\
  static_assert(same(form(&::symbol), form(decltype(ours::tw_driver::name)())), #symbol);
TW_DRIVER_FUNCTIONS(CHECK)
#define EQUAL(name) static_assert((int)ours::name == (int)::name, #name);
EQUAL(CUDA_SUCCESS)
EQUAL(CUDA_ERROR_NO_BINARY_FOR_GPU)
EQUAL(CUDA_ERROR_UNSUPPORTED_PTX_VERSION)
EQUAL(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)
EQUAL(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)
EQUAL(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES)
EQUAL(CU_POINTER_ATTRIBUTE_MEMORY_TYPE)
EQUAL(CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL)
EQUAL(CU_MEMORYTYPE_DEVICE)
EQUAL(CU_STREAM_NON_BLOCKING)
EQUAL(CU_EVENT_DISABLE_TIMING)
EQUAL(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
"""


@pytest.mark.skipif(_HEADER is None, reason="needs cuda.h")
def test_the_driver_is_declared_as_in_its_header(tmp_path):
    source = tmp_path / "check.cpp"
    source.write_text(_CHECK)
    runtime = resources.files("tilewright.runtime") / "c"
    command = ["g++", "-std=c++17", "-fsyntax-only", f"-I{runtime}", f"-I{_HEADER.parent}"]
    done = subprocess.run([*command, source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:4000]
