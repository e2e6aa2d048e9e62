"""Reports for people: one self-contained HTML page, and the same tables in Markdown."""

from tilewright.report.page import write_report

__all__ = ["write_report"]
