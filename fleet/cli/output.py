"""What a command prints: a table for people, JSON for programs, both of the same values.

    @output_option
    def list_devices(output: str) -> None:
        print_rows(("id", "model", "state"), rows, output)

JSON is an array for rows, an object for a value. The array is written as it comes, an element a line, so that a
million rows need no memory of their own. Keys are stable.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import click

OUTPUTS = ("table", "json")

_Command = TypeVar("_Command", bound=Callable[..., object])


def output_option(command: _Command) -> _Command:
    """Give a command `-o table|json`, passed to it as `output`."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice(OUTPUTS),
        default="table",
        show_default=True,
        help="A table for people, or JSON for programs.",
    )(command)


def print_rows(columns: Sequence[str], rows: Iterable[Sequence[object]], output: str) -> None:
    """Print `rows`, each as long as `columns`, as an aligned table with a heading or as a JSON array of objects.

    No rows: the heading alone, or an empty array.
    """
    if output == "json":
        before = "["
        for row in rows:
            click.echo(
                before + json.dumps(dict(zip(columns, map(_plain, row), strict=True)), ensure_ascii=False), nl=False
            )
            before = ",\n "
        click.echo("]" if before != "[" else "[]")
        return
    table = [[column.upper().replace("_", " ") for column in columns]]
    table += [[_text(cell) for cell in row] for row in rows]
    widths = [max(len(line[index]) for line in table) for index in range(len(columns))]
    for line in table:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def print_value(value: Mapping[str, object], output: str) -> None:
    """Print one value as "key: text" lines, or as one JSON object.

    A sequence in the table takes one line an item; None is left out of the table and is null in JSON.
    """
    if output == "json":
        click.echo(json.dumps(_plain(value), ensure_ascii=False))
        return
    shown = {key.replace("_", " "): item for key, item in value.items() if item is not None}
    width = max((len(key) for key in shown), default=0) + 1
    for key, item in shown.items():
        lines = [_text(part) for part in item] if isinstance(item, list | tuple) else [_text(item)]
        for number, line in enumerate(lines or ["-"]):
            label = f"{key}:" if number == 0 else ""
            click.echo(f"{label.ljust(width)} {line}")


def _plain(value: object) -> object:
    """`value` in JSON's types: times as RFC 3339 in UTC, bytes as hex, durations as seconds."""
    match value:
        case None | bool() | int() | float():
            return value
        case datetime():
            return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
        case timedelta():
            return value.total_seconds()
        case bytes():
            return value.hex()
        case Mapping():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_plain(item) for item in value]
        case _:
            return str(value).encode("utf-8", "backslashreplace").decode("utf-8")  # half a surrogate is no text


def _text(value: object) -> str:
    """`value` on one line of a terminal, - for none: control characters shown as escapes, never obeyed."""
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case datetime():
            return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        case bytes():
            return value.hex()
        case Mapping():
            text = ", ".join(f"{key}={_text(item)}" for key, item in value.items())
        case list() | tuple() | set() | frozenset():
            text = ", ".join(_text(item) for item in value)
        case _:
            text = str(value)
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text) or "-"
