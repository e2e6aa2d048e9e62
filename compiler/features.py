"""Which CPU features a module checks for before it runs."""

from __future__ import annotations

from tvm.target import codegen

from tilewright.compiler.targets import Target

# Instruction sets that LLVM emits unasked when the processor has them. What it never emits for
# our kernels (SGX, monitor, cache control, ...) is left out: virtual machines often hide it. The
# tables in runtime/c/tw_cpu_*.c must know every name (tested).
_X86_FEATURES = (
    *("sse3", "ssse3", "sse4.1", "sse4.2", "popcnt", "cx16", "movbe", "lzcnt", "bmi", "bmi2"),
    *("avx", "avx2", "fma", "f16c", "adx", "gfni", "pclmul", "vpclmulqdq", "aes", "vaes", "sha"),
    *("avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl", "avx512ifma", "avx512vbmi"),
    *("avx512vbmi2", "avx512vnni", "avx512bitalg", "avx512vpopcntdq", "avx512vp2intersect"),
    *("avx512bf16", "avx512fp16", "avxvnni", "avxifma", "avxvnniint8", "avxvnniint16"),
    *("avxneconvert", "sha512", "sm3", "sm4", "amx-tile", "amx-int8", "amx-bf16", "amx-fp16"),
    *("sse4a", "xop", "fma4", "tbm"),
)
_AARCH64_FEATURES = (
    *("neon", "fp-armv8", "crc", "lse", "rdm", "fullfp16", "fp16fml", "dotprod", "i8mm", "bf16"),
    *("complxnum", "jsconv", "rcpc", "flagm", "sve", "sve2"),
)
_ARMV7_FEATURES = ("neon", "vfp3", "vfp4", "d32", "hwdiv", "hwdiv-arm")
CHECKED_FEATURES = {
    "x86_64": _X86_FEATURES,
    "aarch64": _AARCH64_FEATURES,
    "armv7": _ARMV7_FEATURES,
}


def required_features(target: Target) -> tuple[str, ...]:
    """Return the LLVM names of the features that code for `target` may use."""
    enabled = set(codegen.llvm_get_cpu_features(target.tvm_target()))
    checked = CHECKED_FEATURES[target.architecture]
    return tuple(feature for feature in checked if feature in enabled)
