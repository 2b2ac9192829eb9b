"""The report of an optimisation: ``render`` makes one HTML file of an outcome, ``write_report`` puts it and its JSON in a folder."""

from __future__ import annotations

from whet.compress.report.page import HTML_NAME, JSON_NAME, finite, render, write_report
from whet.compress.report.rows import summary_rows

__all__ = ["HTML_NAME", "JSON_NAME", "finite", "render", "summary_rows", "write_report"]
