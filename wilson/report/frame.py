"""The frame of a page: one HTML file that refers to nothing outside itself."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from wilson import __version__
from wilson.report import style


def document(title: str, lead: str, sections: Iterable[str], footer: str = "") -> str:
    """The whole page.

    Args:
        title: plain text.
        lead, sections, footer: HTML; the lead is the first paragraph, the footer follows the version.
    """
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{style.CSS}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
<p>{lead}</p>
{"".join(sections)}
<footer>Written by wilson {escape(__version__)}.{footer}</footer>
</main>
</body>
</html>
"""
