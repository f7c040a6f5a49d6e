"""Markdown, as the generated tables of pages have it."""

from collections.abc import Iterable


def table_row(cells: Iterable[str]) -> str:
    """One line of a table."""
    return f"|{''.join(f' {cell} |' if cell else ' |' for cell in cells)}\n"
