"""The few SVG elements that charts are made of; colours come from the page's style."""

from __future__ import annotations

from html import escape


def line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    """Return a line of a class of the page's style."""
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def text(x: float, y: float, content: str, anchor: str = "start", kind: str = "") -> str:
    """Return text; anchor is start, middle or end."""
    named = f' class="{kind}"' if kind else ""
    return f'<text{named} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'


def box(kind: str, x: float, y: float, width: float, height: float, strength: float = 1.0) -> str:
    """Return a rectangle; `strength` is the opacity of its fill."""
    return (
        f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{max(0.0, width):.1f}" '
        f'height="{height:.1f}" fill-opacity="{strength:.2f}"/>'
    )


def titled(content: str, title: str) -> str:
    """Return elements that say `title` under the pointer."""
    return f"<g><title>{escape(title)}</title>{content}</g>"


def drawing(width: float, height: float, body: str, label: str) -> str:
    """Return the whole drawing, with a name for those who cannot see it."""
    return (
        f'<svg role="img" aria-label="{escape(label)}" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}">{body}</svg>'
    )


def short_time(seconds: float) -> str:
    """Return a time of an operator for people."""
    return f"{seconds * 1e3:.3f} ms" if seconds >= 1e-4 else f"{seconds * 1e6:.1f} us"
