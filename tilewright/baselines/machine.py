"""The machine that a figure was measured on: its description and what it gives at the moment."""

import ctypes
import platform
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_SOURCE = Path(__file__).with_name("probes") / "probes.c"
_WRITTEN = ("benchmarks/results", "tuning_logs")
_PACKAGES = ("tilewright", "apache-tvm", "onnxruntime", "openvino", "torch", "onnx", "numpy")
_GENERATION = (("family", "cpu family"), ("model", "model"), ("stepping", "stepping"))
_PEAK_STEPS = 20_000  # about 60 microseconds a thousand: 1 to 2 ms
# For several threads at once: long beside the time that one needs to start.
_MANY_STEPS = 10 * _PEAK_STEPS
_READ_FLOATS = 64 << 20  # 256 MiB, above any last-level cache that one core can use


class Probes:
    """Multiply-add peaks and read bandwidth of one thread, measured when called."""

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            library = Path(folder) / "probes.so"
            flags = ["-O2", "-march=native", "-shared", "-fPIC"]
            command = ["gcc", *flags, "-o", str(library), str(_SOURCE)]
            subprocess.run(command, check=True)
            self._library = ctypes.CDLL(str(library))
        names = ("peak_gflops", "int8_gops", "read_gb_s", "read_streams_gb_s")
        for function in (getattr(self._library, name) for name in names):
            function.restype = ctypes.c_double
            function.argtypes = [ctypes.c_long]
        self.read_gb_s()  # allocates and touches its memory

    def peak_gflops(self, steps: int = _PEAK_STEPS) -> float:
        """Return the float32 multiply-add rate in registers, 10^9 operations a second."""
        return self._library.peak_gflops(steps)

    def int8_gops(self) -> float:
        """Return the exact int8 multiply-add rate in registers, 10^9 operations a second.

        That of vpdpbusd, or without VNNI of vpmaddwd and an add; below 0 where there is neither.
        """
        return self._library.int8_gops(_PEAK_STEPS)

    def read_gb_s(self) -> float:
        """Return the rate of reading 256 MiB once, 10^9 bytes a second."""
        return self._library.read_gb_s(_READ_FLOATS)

    def read_streams_gb_s(self) -> float:
        """Return the same of 4 streams at once, which the processor fetches sooner."""
        return self._library.read_streams_gb_s(_READ_FLOATS)

    def sample(self, threads: int) -> dict[str, float]:
        """Return what the machine gives now, by name; "peak_threads_gflops" is of all threads."""
        names = ("peak_gflops", "int8_gops", "read_gb_s")
        found = {name: float(getattr(self, name)()) for name in names}
        if threads > 1:
            with ThreadPoolExecutor(threads) as pool:
                tasks = [pool.submit(self.peak_gflops, _MANY_STEPS) for _ in range(threads)]
                found["peak_threads_gflops"] = sum(task.result() for task in tasks)
        return found


def describe() -> dict[str, str]:
    """Return processor, memory, system, versions and commit, as text by name."""
    facts = {
        "processor": _processor(),
        "instructions": instruction_set(),
        "processors": str(_field_count("/proc/cpuinfo", "processor")),
        "memory": f"{int(_field('/proc/meminfo', 'MemTotal').split()[0]) / 2**20:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "commit": commit(),
    }
    for package in _PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    return facts


def instruction_set() -> str:
    """Return the widest vectors of this processor: "avx512_vnni", "avx512", "avx2" or "other"."""
    flags = _field("/proc/cpuinfo", "flags").split()
    if {"avx512f", "avx512_vnni"} <= set(flags):
        return "avx512_vnni"
    if "avx512f" in flags:
        return "avx512"
    return "avx2" if "avx2" in flags else "other"


def commit() -> str:
    """Return the short hash of the checked-out commit, marked where sources differ from it."""

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        )

    try:
        found = git("rev-parse", "--short", "HEAD").stdout.strip()
        # What a benchmark has written does not change what it measures.
        written = [f":(top,exclude){folder}" for folder in _WRITTEN]
        changed = git("diff", "--quiet", "HEAD", "--", ":/", *written).returncode == 1
    except FileNotFoundError:  # there is no git
        return "unknown"
    return found + "-dirty" * changed if found else "unknown"


def peak_rss_mb() -> float:
    """Return the largest resident memory of this process so far, 10^6 bytes.

    VmHWM belongs to the program that runs now; getrusage's figure survives exec and so may be
    that of the process that started this one.
    """
    return int(_field("/proc/self/status", "VmHWM").split()[0]) * 1024 / 1e6


def _processor() -> str:
    """Return the processor's name, with the numbers that tell one generation from another."""
    name = _field("/proc/cpuinfo", "model name")
    numbers = [f"{key} {_field('/proc/cpuinfo', field)}" for key, field in _GENERATION]
    return f"{name} ({', '.join(numbers)})"


def _lines(path: str, name: str) -> list[str]:
    lines = Path(path).read_text().splitlines()
    return [v.strip() for key, _, v in (s.partition(":") for s in lines) if key.strip() == name]


def _field(path: str, name: str) -> str:
    return next(iter(_lines(path, name)), "0")


def _field_count(path: str, name: str) -> int:
    return len(_lines(path, name))
