"""Reports: ``render`` makes one HTML file of an outcome, ``write_report`` puts it and its JSON in a folder; ``render_explanation`` makes
one of an explanation."""

from __future__ import annotations

from whet.compress.report.explanation import render_explanation
from whet.compress.report.page import HTML_NAME, JSON_NAME, finite, render, write_report
from whet.compress.report.rows import summary_rows

__all__ = ["HTML_NAME", "JSON_NAME", "finite", "render", "render_explanation", "summary_rows", "write_report"]
