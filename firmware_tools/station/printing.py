"""Output of the factory's commands: JSON or aligned text. Control characters of a board's texts are escaped."""

from collections.abc import Mapping, Sequence

import click

from fleet.config.streams import json_text, printable


def print_object(value: Mapping[str, object], output: str) -> None:
    """One object: as JSON, or as "key: value" lines without the empty ones."""
    if output == "json":
        click.echo(json_text(value))
        return
    shown = {key.replace("_", " "): plain(value) for key, value in value.items() if value not in ("", None)}
    width = max(map(len, shown), default=0) + 1
    for key, text in shown.items():
        click.echo(f"{(key + ':').ljust(width)} {text}")


def print_table(rows: Sequence[Mapping[str, object]], columns: Sequence[str], output: str) -> None:
    """Rows: as a JSON array, or as a table with a heading."""
    if output == "json":
        click.echo(json_text(list(rows)))
        return
    table = [[column.upper().replace("_", " ") for column in columns]]
    table += [[plain(row[column]) or "-" for column in columns] for row in rows]
    widths = [max(len(line[index]) for line in table) for index in range(len(columns))]
    for line in table:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def plain(value: object) -> str:
    """`value` with control characters escaped."""
    return printable(str(value))
