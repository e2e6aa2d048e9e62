"""Names of operators as people read them: what is computed first, and which call it is."""

from __future__ import annotations

_MOST = 44


def short_label(label: str, most: int = _MOST) -> str:
    """Return the name of a kernel or of a call in at most so many characters.

    The name lists all that is fused: its beginning, which says what the operator is, and its end
    stay, and so does the number of the call: `conv1d_add_abs_negative_..tanh_multiply#0`.
    """
    name, mark, number = label.partition("#")
    name = name.removeprefix("fused_").removeprefix("tir_").replace("_tir_", "_")
    room = most - len(mark + number)
    if len(name) > room:
        tail = room // 3
        name = f"{name[: room - tail - 2]}..{name[len(name) - tail :]}"
    return f"{name}{mark}{number}"
