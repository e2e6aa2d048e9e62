"""What a report says of a compiled module: measured where it runs here, described where not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tilewright.errors import ModuleError
from tilewright.explaining import explain
from tilewright.profiling import byte_ratio
from tilewright.runtime.library import read_description

CONVERSION = "convert "
_ROUNDS = 10
_AXES = "NCHW"


@dataclass(frozen=True, slots=True)
class Call:
    """One operator call of a module.

    Attributes:
        label: of the call.
        kernel: that it runs.
        layouts: of its arguments, as the compiler writes them; none of a conversion.
        reads, writes: numbers of tensors.
        dtypes: of its arguments.
        tuning, reason: where its decisions come from, and why.
        figures: of `tilewright.explaining.Explanation`, empty where nothing was measured.
    """

    label: str
    kernel: str
    layouts: tuple[str, ...]
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    dtypes: tuple[str, ...]
    tuning: str
    reason: str
    figures: Mapping[str, Any]

    @property
    def is_conversion(self) -> bool:
        """Whether it only changes a layout."""
        return self.label.startswith(CONVERSION)

    @property
    def result_layout(self) -> str:
        """The layout of what it writes, in short: "N C/8 H W 8c", or "" where it is plain."""
        return short_layout(self.layouts[-1]) if self.layouts else ""


@dataclass(frozen=True, slots=True)
class ModuleReport:
    """A module.

    Attributes:
        title: of the section.
        facts: about the whole.
        calls: in the order in which they run.
        inputs, outputs: what is passed and comes back, as "name [1, 3, 224, 224] float32".
        measured: what `tilewright.explaining.explain` found, or None.
        why_not: why it was not measured, or "".
        byte_ratio: the peak of the kernels of bytes over that of floats; 1 where there are none.
        quantized: see `tilewright.compiler.quantize.explain.Explained`.
    """

    title: str
    facts: Mapping[str, str]
    calls: tuple[Call, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    measured: Mapping[str, Any] | None
    why_not: str
    byte_ratio: int
    quantized: tuple[Mapping[str, Any], ...]


def read_module(path: Path) -> ModuleReport:
    """Describe a module, and measure it on one thread if it runs on this processor.

    Raises:
        ModuleError: it is no module, or damaged.
    """
    description = read_description(path)
    entry = description["entries"][0]
    measured: dict[str, Any] | None = None
    why_not = ""
    try:
        measured = explain(path, rounds=_ROUNDS)
    except ModuleError as error:  # for another processor, or compiled by an older release
        why_not = str(error)
    figures: dict[str, list[Mapping[str, Any]]] = {}
    for row in measured["operators"] if measured else ():
        figures.setdefault(row["label"], []).append(row)
    calls = tuple(_call(item, figures) for item in entry["calls"])
    features = description["target"].get("features", ())
    ratio = max((byte_ratio(call.kernel, features) for call in calls), default=1)
    return ModuleReport(
        title=f"Module {path.name}",
        facts=_facts(path, description, calls, measured),
        calls=calls,
        inputs=tuple(map(_signature, entry["inputs"])),
        outputs=tuple(map(_signature, entry["outputs"])),
        measured=measured,
        why_not=why_not,
        byte_ratio=ratio,
        quantized=tuple(description.get("quantized", ())),
    )


def _call(item: Mapping[str, Any], figures: Mapping[str, list[Mapping[str, Any]]]) -> Call:
    found = figures.get(item["label"])
    return Call(
        label=item["label"],
        kernel=item["kernel"],
        layouts=tuple(item.get("layouts", ())),
        reads=tuple(item.get("reads", ())),
        writes=tuple(item.get("writes", ())),
        dtypes=tuple(item.get("dtypes", ())),
        tuning=item.get("tuning", ""),
        reason=item.get("reason", ""),
        figures=found.pop(0) if found else {},
    )


def _facts(
    path: Path,
    description: Mapping[str, Any],
    calls: Sequence[Call],
    measured: Mapping[str, Any] | None,
) -> dict[str, str]:
    target = description["target"]
    conversions = sum(call.is_conversion for call in calls)
    facts = {
        "target": f"{target.get('name')} ({target.get('mcpu', target.get('chip', ''))})",
        "size": f"{path.stat().st_size / (1 << 20):.2f} MiB",
        "operators": f"{len(calls) - conversions}, and {conversions} layout conversion"
        + "s" * (conversions != 1),
        "model": f"SHA-256 {str(description.get('model_digest', 'not known'))[:16]}",
    }
    if measured is not None:
        shares = ", ".join(f"{share:.0%} {kind}" for kind, share in measured["tuned"].items())
        facts |= {
            "time": f"{measured['seconds'] * 1e3:.3f} ms on {measured['threads']} thread"
            + "s" * (measured["threads"] != 1),
            "tuning": shares or "no tasks",
            "machine": f"{measured['peak_gflops']:.0f} GFLOP/s and "
            f"{measured['bandwidth_gbytes']:.1f} GB/s, measured in the same rounds",
        }
    return facts


def _signature(item: Mapping[str, Any]) -> str:
    return f"{item['name']} {item['shape']} {item['dtype']}"


def short_layout(text: str) -> str:
    """Return "N C/8 H W 8c" for "d0 d1 d2 d3 -> d0 d1/8 d2 d3 8d1"; "" where nothing is moved."""
    before, arrow, after = text.partition(" -> ")
    if not arrow or before == after:
        return ""
    names = before.split()
    if len(names) != len(_AXES):
        return after
    for number, letter in enumerate(_AXES):
        after = after.replace(f"d{number}", letter)
    parts = after.split()
    return " ".join(p if not p[0].isdigit() else p[:-1] + p[-1].lower() for p in parts)
