"""What a command prints: a table for people, JSON for programs, both of the same values.

    COLUMNS = ("id", "model", Column("state", format=str.upper))

    print_rows(COLUMNS, client.items("/v1/models"), output)

JSON is the value itself: an array for rows, written as they come, an element a line, so that a million rows need no
memory; an object for one value. Keys are stable. A table shows its columns by key; on a terminal it fits the width, and
where its columns cannot, each row is a block of "key: text" lines.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import click

from fleet.config.streams import json_text, printable, text_of
from fleet.config.timestamps import rfc3339

OUTPUTS = ("table", "json")
WIDTH_UNKNOWN = 80  # of a terminal that does not say
COLUMN_WIDTH_MIN = 8
WORD_WIDTH_MAX = 20  # a longer word is broken before a column takes the room of others
CHUNK_ROWS_MAX = 10_000
"""Rows that a table has in memory at once, and of which the widths are known before one is printed."""
CHUNK_SIZE_MAX = 16 * 1024 * 1024  # characters of them
GAP = "  "

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


def print_rows(columns: Sequence[str | Column], rows: Iterable[Row], output: str, none: str = "") -> None:
    """Print `rows` as a table of `columns` with a heading, or whole as a JSON array of objects.

    No rows: the heading alone, and the sentence `none` on standard error, or an empty array. A table is printed some
    rows at a time; its columns may grow wider.
    """
    if output == "json":
        print_array(_without_revision(row) for row in rows)
        return
    shown = [each if isinstance(each, Column) else Column(each) for each in columns]
    heading = [each.key.upper().replace("_", " ") for each in shown]
    widths = [len(each) for each in heading]
    is_first = True
    for chunk in _chunks([text_of(each.format(row.get(each.key))) for each in shown] for row in rows):
        widths = [max(map(len, cells)) for cells in zip([" " * width for width in widths], *chunk, strict=True)]
        width = _width()
        fitted = _fitted(widths, width, [heading, *chunk])
        if width is not None and _total(fitted) > width and len(chunk) > 0:
            _print_blocks(shown, chunk, is_first=is_first)
            is_first = False
            continue
        if is_first:
            for line in _lines(heading, fitted):
                click.echo(click.style(line, bold=True))
        if is_first and not chunk and none:
            click.echo(none, err=True)
        is_first = False
        for cells in chunk:
            for line in _lines(cells, fitted, _colors(cells)):
                click.echo(line)


def _print_blocks(columns: Sequence[Column], chunk: Sequence[Sequence[str]], *, is_first: bool) -> None:
    """Rows that are too wide for the terminal, each as lines of its own."""
    for number, cells in enumerate(chunk):
        if number or not is_first:
            click.echo()
        labels = [each.key.replace("_", " ") for each in columns]
        _print_lines([(label, [cell]) for label, cell in zip(labels, cells, strict=True)], _colors(cells))


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

    A sequence in the table takes one line an item, one of records a block each, and so does one record; None is left
    out of the table and is null in JSON.
    """
    if output == "json":
        click.echo(_json(_without_revision(value)))
        return
    value = _without_revision(table or value)
    shown = {printable(key).replace("_", " "): item for key, item in value.items() if item is not None}
    texts = {key: list(item) if isinstance(item, list | tuple) else [item] for key, item in shown.items()}
    records = {key: items for key, items in texts.items() if items and all(map(_is_record, items))}
    plain = [(key, [text_of(each) for each in items] or ["-"]) for key, items in texts.items() if key not in records]
    _print_lines(plain)
    for key, items in records.items():
        for number, record in enumerate(items, 1):
            click.echo(f"\n{key}:" if isinstance(shown[key], Mapping) else f"\n{key} {number} of {len(items)}:")
            lines = [(f"  {printable(name).replace('_', ' ')}", [text_of(each)]) for name, each in record.items()]
            _print_lines(lines)


def _is_record(item: object) -> bool:
    """Whether there is a block to print of it."""
    return isinstance(item, Mapping) and bool(item)


def _print_lines(texts: Sequence[tuple[str, Sequence[str]]], colors: Sequence[str | None] = ()) -> None:
    """Labels and their texts, a text longer than the terminal is wide on several lines. No word is broken: it can be
    copied whole."""
    indent = max((len(label) for label, _ in texts), default=0) + 2
    width = _width()
    for number, (label, items) in enumerate(texts):
        color = colors[number] if colors else None
        lines = [line for item in items for line in _wrapped(item, indent, width)]
        for place, line in enumerate(lines):
            before = f"{label}:" if place == 0 else ""
            click.echo(f"{before.ljust(indent - 1)} {_styled(line, color)}")


def _wrapped(text: str, indent: int, width: int | None) -> list[str]:
    if width is None or indent + len(text) <= width:
        return [text]
    import textwrap

    room = max(width - indent, COLUMN_WIDTH_MIN)
    return textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False) or [text]


def _without_revision(value: Row) -> Row:
    """The revision is what an ETag is made of, and no concern of who reads the output."""
    return {key: item for key, item in value.items() if key != "revision"}


def _width() -> int | None:
    """Columns of the terminal; None for no bound: a pipe or a file gets every cell on one line."""
    if sys.stdout is not None and sys.stdout.isatty():
        import shutil  # with its compressors, a twentieth of a command's start-up

        return shutil.get_terminal_size((WIDTH_UNKNOWN, 24)).columns
    return None


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(GAP) * (len(widths) - 1)


def _fitted(widths: list[int], width: int | None, table: Sequence[Sequence[str]]) -> list[int]:
    """`widths`, the widest made narrower until they fit into `width`: their cells are folded, between words while that
    is enough. They may not fit even then."""
    fitted = list(widths)
    over = _total(fitted) - width if width is not None else 0
    if over <= 0:
        return fitted
    words = [
        max((len(word) for cell in cells for word in cell.split()), default=0) for cells in zip(*table, strict=True)
    ]
    for bounds in ([min(each, WORD_WIDTH_MAX) for each in words], [COLUMN_WIDTH_MIN] * len(words)):
        while over > 0:
            wide = [place for place, bound in enumerate(bounds) if fitted[place] > bound]
            if not wide:
                break
            fitted[max(wide, key=fitted.__getitem__)] -= 1
            over -= 1
    return fitted


def _lines(cells: Sequence[str], widths: Sequence[int], colors: Sequence[str | None] = ()) -> Iterator[str]:
    folded = [_folded(cell, width) for cell, width in zip(cells, widths, strict=True)]
    colors = colors or [None] * len(cells)
    for number in range(max(map(len, folded), default=0)):
        parts = [lines[number] if number < len(lines) else "" for lines in folded]
        padded = zip(parts, widths, colors, strict=True)
        yield GAP.join(_styled(part, color) + " " * (width - len(part)) for part, width, color in padded).rstrip()


def _folded(cell: str, width: int) -> list[str]:
    if len(cell) <= width:
        return [cell]
    import textwrap

    return textwrap.wrap(cell, width) or [cell]


def _colors(cells: Sequence[str]) -> list[str | None]:
    """Of cells that are a state; the first names the row, and is none."""
    return [None, *(_COLORS.get(cell) for cell in cells[1:])]


def _styled(text: str, color: str | None) -> str:
    """`click.echo` takes the color out again where it does not go to a terminal."""
    return click.style(text, fg=color) if color and text else text


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
