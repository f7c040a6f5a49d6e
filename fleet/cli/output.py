"""What a command prints: a table for people, JSON for programs, both of the same values.

    COLUMNS = ("id", "model", Column("state", format=str.upper))

    print_rows(COLUMNS, client.items("/v1/models"), output)

JSON is the value itself: an array for rows, written as they come, an element a line, so that a million rows need no
memory; an object for one value. Keys are stable. A table shows its columns by key; on a terminal it fits the width.
"""

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import click

from fleet.config.streams import json_text, printable
from fleet.config.timestamps import rfc3339

OUTPUTS = ("table", "json")
WIDTH_UNKNOWN = 80  # of a terminal that does not say
COLUMN_WIDTH_MIN = 8
CHUNK_ROWS_MAX = 10_000
"""Rows that a table has in memory at once, and of which the widths are known before one is printed."""
CHUNK_SIZE_MAX = 16 * 1024 * 1024  # characters of them
GAP = "  "

_RFC3339_UTC = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)")
_COLORS = {
    **dict.fromkeys(("revoked", "denied", "quarantined", "failed", "expired"), "red"),
    **dict.fromkeys(("suspended", "pending", "superseded"), "yellow"),
    **dict.fromkeys(("active", "approved", "open"), "green"),
}

_Command = TypeVar("_Command", bound=Callable[..., object])
Row = Mapping[str, Any]


class Column(NamedTuple):
    """A column of a table: the key of its value, which is its heading, and how the value is formatted."""

    key: str
    format: Callable[[Any], object] = lambda value: value


class Seen:
    """Rows as they pass, at most `limit`: how many there were, and the last."""

    def __init__(self, rows: Iterable[Row], limit: int | None = None) -> None:
        self._rows = islice(rows, limit)
        self.count = 0
        self.last: Row | None = None

    def __iter__(self) -> Iterator[Row]:
        for row in self._rows:
            self.count, self.last = self.count + 1, row
            yield row


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


def print_rows(columns: Sequence[str | Column], rows: Iterable[Row], output: str) -> None:
    """Print `rows` as a table of `columns` with a heading, or whole as a JSON array of objects.

    No rows: the heading alone, or an empty array. A table is printed some rows at a time; its columns may grow wider.
    """
    if output == "json":
        print_array(_without_revision(row) for row in rows)
        return
    shown = [each if isinstance(each, Column) else Column(each) for each in columns]
    heading = [each.key.upper().replace("_", " ") for each in shown]
    widths = [len(each) for each in heading]
    is_first = True
    for chunk in _chunks([_text(each.format(row.get(each.key))) for each in shown] for row in rows):
        widths = [max(map(len, cells)) for cells in zip([" " * width for width in widths], *chunk, strict=True)]
        fitted = _fitted(widths, _width())
        if is_first:
            for line in _lines(heading, fitted):
                click.echo(click.style(line, bold=True))
        is_first = False
        for cells in chunk:
            for line in _lines(cells, fitted):
                click.echo(_colored(line))


def _chunks(table: Iterable[list[str]]) -> Iterator[list[list[str]]]:
    """The rows of `table`, some at a time: a list without an end takes no more memory than one chunk. At least one."""
    chunk: list[list[str]] = []
    size = 0
    is_first = True
    for cells in table:
        chunk.append(cells)
        size += sum(map(len, cells))
        if len(chunk) >= CHUNK_ROWS_MAX or size > CHUNK_SIZE_MAX:
            yield chunk
            chunk, size, is_first = [], 0, False
    if chunk or is_first:
        yield chunk


def print_array(rows: Iterable[object]) -> None:
    """Print `rows` as a JSON array, each as it comes."""
    before = "["
    for row in rows:
        click.echo(before + _json(row), nl=False)
        before = ",\n "
    click.echo("]" if before != "[" else "[]")


def print_value(value: Row, output: str, table: Row | None = None) -> None:
    """Print one value as "key: text" lines, or as one JSON object. `table`: what people are shown in its place.

    A sequence in the table takes one line an item; None is left out of the table and is null in JSON.
    """
    if output == "json":
        click.echo(_json(_without_revision(value)))
        return
    value = _without_revision(table or value)
    shown = {printable(key).replace("_", " "): item for key, item in value.items() if item is not None}
    width = max((len(key) for key in shown), default=0) + 1
    for key, item in shown.items():
        lines = [_text(part) for part in item] if isinstance(item, list | tuple) else [_text(item)]
        for number, line in enumerate(lines or ["-"]):
            label = f"{key}:" if number == 0 else ""
            click.echo(f"{label.ljust(width)} {line}")


def _without_revision(value: Row) -> Row:
    """The revision is what an ETag is made of, and no concern of who reads the output."""
    return {key: item for key, item in value.items() if key != "revision"}


def _width() -> int | None:
    """Columns of the terminal; None for no bound: a pipe or a file gets every cell on one line."""
    if sys.stdout is not None and sys.stdout.isatty():
        import shutil  # with its compressors, a twentieth of a command's start-up

        return shutil.get_terminal_size((WIDTH_UNKNOWN, 24)).columns
    return None


def _fitted(widths: list[int], width: int | None) -> list[int]:
    """`widths`, the widest made narrower until they fit into `width`: their cells are folded."""
    fitted = list(widths)
    over = sum(fitted) + len(GAP) * (len(fitted) - 1) - width if width is not None else 0
    while over > 0:
        widest = max(range(len(fitted)), key=fitted.__getitem__)
        if fitted[widest] <= COLUMN_WIDTH_MIN:
            break
        fitted[widest] -= 1
        over -= 1
    return fitted


def _lines(cells: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    folded = [_folded(cell, width) for cell, width in zip(cells, widths, strict=True)]
    for number in range(max(map(len, folded), default=0)):
        parts = [lines[number] if number < len(lines) else "" for lines in folded]
        yield GAP.join(part.ljust(width) for part, width in zip(parts, widths, strict=True)).rstrip()


def _folded(cell: str, width: int) -> list[str]:
    if len(cell) <= width:
        return [cell]
    import textwrap

    return textwrap.wrap(cell, width, break_on_hyphens=False) or [cell]


def _colored(line: str) -> str:
    """States in color; `click.echo` takes it out again where it does not go to a terminal."""
    return re.sub(r"(?<=  )[a-z]+(?=  |$)", lambda found: click.style(found[0], fg=_COLORS.get(found[0])), line)


def _json(value: object) -> str:
    """JSON that the standard output can carry: escaped unless it is UTF-8."""
    encoding = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("-", "")
    return json_text(_plain(value), ascii_only=encoding != "utf8")


def _plain(value: object) -> object:
    """`value` in JSON's types: times as RFC 3339 in UTC, bytes as hex, durations as seconds."""
    match value:
        case None | bool() | int() | float():
            return value
        case datetime():
            return rfc3339(value)
        case timedelta():
            return value.total_seconds()
        case bytes():
            return value.hex()
        case Mapping():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_plain(item) for item in value]
        case _:
            return str(value).encode("utf-8", "backslashreplace").decode("utf-8")  # a lone surrogate is not text


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
        case str() if _RFC3339_UTC.fullmatch(value):
            return f"{value[:10]} {value[11:19]}Z"
        case _:
            text = str(value)
    return printable(text) or "-"
