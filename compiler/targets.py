"""Target descriptions: what schedules and code generation need to know about a processor."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import tvm
from tvm.target import codegen

from tilewright.errors import TargetError

# The vector features that kernels may use: name in /proc/cpuinfo -> name in LLVM. A module
# lists those it was built with, and its loader refuses a processor that lacks one.
_LLVM_FEATURES = {
    "x86_64": {
        "avx2": "avx2",
        "fma": "fma",
        "f16c": "f16c",
        "avx512f": "avx512f",
        "avx512vl": "avx512vl",
        "avx512bw": "avx512bw",
        "avx512dq": "avx512dq",
        "avx512cd": "avx512cd",
        "avx512_vnni": "avx512vnni",
        "avx512_bf16": "avx512bf16",
        "avx_vnni": "avxvnni",
    },
    "aarch64": {
        "asimd": "neon",
        "asimdhp": "fullfp16",
        "asimddp": "dotprod",
        "i8mm": "i8mm",
        "bf16": "bf16",
        "sve": "sve",
        # Some boards of a processor lack these (Raspberry Pi 4), and kernels never need them.
        "aes": "aes",
        "sha2": "sha2",
    },
    "armv7": {"neon": "neon", "vfpv4": "vfp4"},
}
_V3 = ("avx2", "fma", "f16c")
_V4 = (*_V3, "avx512f", "avx512vl", "avx512bw", "avx512dq", "avx512cd")
_TRIPLES = {
    "x86_64": "x86_64-unknown-linux-gnu",
    "aarch64": "aarch64-unknown-linux-gnu",
    "armv7": "armv7-unknown-linux-gnueabihf",
}


@dataclass(frozen=True, slots=True)
class Target:
    """A processor to build for. Sizes are bytes per core, but l3_bytes is shared by all cores.

    Attributes:
        name: what the user asked for ("native" stays "native").
        triple: LLVM triple.
        mcpu: LLVM processor name.
        features: processor features that the code needs, as /proc/cpuinfo names them.
        vector_bits: widest vector that kernels use.
        vector_registers: how many registers of that width there are.
        cores: cores that a kernel's parallel loops are split over.
    """

    name: str
    triple: str
    mcpu: str
    features: tuple[str, ...]
    vector_bits: int
    vector_registers: int
    l1_bytes: int
    l2_bytes: int
    l3_bytes: int
    cores: int

    @property
    def architecture(self) -> str:
        """The family that machine code is made for: "x86_64", "aarch64" or "armv7"."""
        return self.triple.partition("-")[0]

    @property
    def keeps_steps_apart(self) -> bool:
        """Whether a loop should have one step of a reduction in a round.

        LLVM orders the loads of several steps before their multiply-adds; on armv7 it then spills
        half of the 16 registers.
        """
        return self.architecture == "armv7"

    @property
    def has_32_bit_addresses(self) -> bool:
        """Whether counting in 64 bits takes two registers and two instructions."""
        return self.architecture == "armv7"

    @property
    def multiplies_by_lane(self) -> bool:
        """Whether a vector can be multiplied by one lane of another at no extra cost."""
        return self.architecture == "aarch64"

    @property
    def broadcasts_from_memory(self) -> bool:
        """Whether a multiply-add can take one element of memory for all lanes (EVEX encoding)."""
        return self.architecture == "x86_64" and self.vector_bits == 512

    @property
    def prefetches(self) -> bool:
        """Whether kernels ask for weights ahead of time.

        With AVX-512 a tile is done before memory has sent the next weights. Narrower vectors leave
        too little room in a round of their loops.
        """
        return self.broadcasts_from_memory

    def lanes(self, dtype: str) -> int:
        """Return how many elements of `dtype` one vector register holds."""
        bits = tvm.DataType(dtype).bits
        return max(1, self.vector_bits // max(bits, 8))

    def tvm_target(self) -> tvm.target.Target:
        """Return the TVM target, with exactly the vector features listed."""
        attributes = [
            ("+" if feature in self.features else "-") + llvm
            for feature, llvm in _LLVM_FEATURES[self.architecture].items()
        ]
        if self.vector_bits == 512:
            # LLVM's models of several Intel processors would otherwise split 512-bit vectors.
            attributes.append("-prefer-256-bit")
        options: dict[str, Any] = {
            "kind": "llvm",
            "mtriple": self.triple,
            "mcpu": self.mcpu,
            "mattr": attributes,
            "num-cores": self.cores,
            "opt-level": 3,
            # Kernels assume no more alignment than this: callers' buffers come from malloc.
            "vector-width": 128,
        }
        if self.architecture == "armv7":
            options["mfloat-abi"] = "hard"
            # LLVM would rather multiply and add apart: better for a chain, but not for a tile.
            attributes += ["-slowfpvfmx", "-slowfpvmlx", "-vmlx-hazards"]
        return tvm.target.Target(options)

    def to_json(self) -> str:
        """Return one line of JSON that `from_json` reads back."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Target:
        """Read a target back.

        Raises:
            TargetError: the text is not a target.
        """
        try:
            values: dict[str, Any] = json.loads(text)
        except json.JSONDecodeError as error:
            raise TargetError(f"target description is not JSON: {error}") from error
        expected = {field.name for field in fields(cls)}
        if not isinstance(values, dict) or set(values) != expected:
            raise TargetError(
                f"target description has fields {sorted(values)}, expected {sorted(expected)}"
            )
        return cls(**{**values, "features": tuple(values["features"])})


def _named(mcpu: str, features: tuple[str, ...], l1: int, l2: int, l3: int, cores: int) -> Target:
    wide = "avx512f" in features
    return Target(
        name=mcpu,
        triple=_TRIPLES["x86_64"],
        mcpu=mcpu,
        features=features,
        vector_bits=512 if wide else 256,
        vector_registers=32 if wide else 16,
        l1_bytes=l1 << 10,
        l2_bytes=l2 << 10,
        l3_bytes=l3 << 10,
        cores=cores,
    )


def _arm(
    name: str, mcpu: str, features: tuple[str, ...], l1: int, l2: int, l3: int, cores: int
) -> Target:
    """Describe an ARM processor; NEON's vectors have 128 bits on all of them."""
    architecture = name.partition(":")[0]
    return Target(
        name=name,
        triple=_TRIPLES[architecture],
        mcpu=mcpu,
        features=features,
        vector_bits=128,
        vector_registers=32 if architecture == "aarch64" else 16,
        l1_bytes=l1 << 10,
        l2_bytes=l2 << 10,
        l3_bytes=l3 << 10,
        cores=cores,
    )


_VNNI = (*_V4, "avx512_vnni")
_BF16 = (*_VNNI, "avx512_bf16")
_DOT = ("asimd", "asimdhp", "asimddp")
# Caches in KiB: the smallest that is common among the processors of that name.
_NAMED = {
    target.name: target
    for target in (
        _named("x86-64-v3", _V3, 32, 256, 8192, 4),
        _named("x86-64-v4", _V4, 32, 1024, 16384, 4),
        _named("haswell", _V3, 32, 256, 8192, 4),
        _named("skylake-avx512", _V4, 32, 1024, 16384, 8),
        _named("cascadelake", _VNNI, 32, 1024, 16384, 8),
        _named("icelake-server", _VNNI, 48, 1280, 24576, 8),
        _named("sapphirerapids", (*_BF16, "avx_vnni"), 48, 2048, 32768, 8),
        _named("znver2", _V3, 32, 512, 16384, 8),
        _named("znver3", _V3, 32, 512, 32768, 8),
        _named("znver4", _BF16, 32, 1024, 32768, 8),
        _named("znver5", (*_BF16, "avx_vnni"), 48, 1024, 32768, 8),
        _arm("aarch64", "generic", ("asimd",), 32, 512, 1024, 4),
        # Raspberry Pi 4. Processors without a third level get the size of the second here: it
        # bounds what may be reused from a cache.
        _arm("aarch64:cortex-a72", "cortex-a72", ("asimd",), 32, 1024, 2048, 4),
        _arm("aarch64:cortex-a76", "cortex-a76", _DOT, 64, 512, 2048, 4),  # Raspberry Pi 5
        _arm("aarch64:neoverse-n1", "neoverse-n1", _DOT, 64, 1024, 32768, 8),
        # SVE computes no more products in a cycle than NEON here (benchmarks/arm_mca.py).
        _arm("aarch64:neoverse-v1", "neoverse-v1", (*_DOT, "i8mm", "bf16"), 64, 1024, 32768, 8),
        _arm("armv7:cortex-a7", "cortex-a7", ("neon", "vfpv4"), 32, 512, 1024, 4),
    )
}


def list_targets() -> tuple[str, ...]:
    """Return the names that `parse_target` accepts."""
    return ("native", *_NAMED)


def parse_target(name: str) -> Target:
    """Return the description of a target by name; "native" reads this machine.

    Raises:
        TargetError: the name is unknown, or "native" is asked for on a machine that is neither
            x86-64 with AVX2 nor aarch64.
    """
    if name == "native":
        return _native()
    if name.startswith("cuda"):
        raise TargetError(f"{name!r} is not a processor, which is what this needs; see 'compile'")
    if name not in _NAMED:
        raise TargetError(f"unknown target {name!r}; known targets: {', '.join(list_targets())}")
    return _NAMED[name]


def _native() -> Target:
    flags = _cpu_flags(Path("/proc/cpuinfo"))
    machine = platform.machine()
    if machine == "x86_64" and {"avx2", "fma"} <= flags:
        wide = set(_V4) <= flags
        generic = _NAMED["x86-64-v4" if wide else "x86-64-v3"]
        unused = () if wide else tuple(name for name in flags if name.startswith("avx512"))
    elif machine == "aarch64":
        generic, unused = _NAMED["aarch64"], ("sve", "aes", "sha2")
    else:
        raise TargetError(
            f"target 'native' needs Linux on x86-64 with AVX2 and FMA, or on aarch64; this is "
            f"{machine}; name a target instead: {', '.join(_NAMED)}"
        )
    known = _LLVM_FEATURES[generic.architecture]
    caches = _cache_sizes(Path("/sys/devices/system/cpu/cpu0/cache"))
    return replace(
        generic,
        name="native",
        mcpu=str(codegen.llvm_get_system_cpu()),
        features=tuple(name for name in known if name in flags and name not in unused),
        l1_bytes=caches.get(1, generic.l1_bytes),
        l2_bytes=caches.get(2, generic.l2_bytes),
        l3_bytes=caches.get(3, generic.l3_bytes),
        cores=len(os.sched_getaffinity(0)),
    )


def _cpu_flags(cpuinfo: Path) -> frozenset[str]:
    if not cpuinfo.exists():
        return frozenset()
    for line in cpuinfo.read_text().splitlines():
        if line.startswith(("flags", "Features")):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def _cache_sizes(folder: Path) -> dict[int, int]:
    """Return level -> bytes of the data and unified caches; empty where sysfs has none."""
    sizes: dict[int, int] = {}
    for index in sorted(folder.glob("index*")):
        if (index / "type").read_text().strip() == "Instruction":
            continue
        text = (index / "size").read_text().strip()
        unit = {"K": 1 << 10, "M": 1 << 20}.get(text[-1:], 1)
        sizes[int((index / "level").read_text())] = int(text.rstrip("KM")) * unit
    return sizes
