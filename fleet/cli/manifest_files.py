"""Manifest files as a stream of rows: CSV, JSON lines or a JSON array, however long.

| column | CSV | JSON |
| --- | --- | --- |
| device_id | text | text |
| model | text | text |
| hardware_serial | text, may be empty | text |
| key_sha256 | 64 hex digits, may be empty | text |
| tags | `lot=L7;site=Oslo` | an object |
| groups | `pilot;canary` | a list |

A row that cannot be read is yielded as RowRefused, and reading goes on behind it.
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TextIO

from fleet.domain.errors import FleetError, Invalid
from fleet.domain.manifest import key_hash
from fleet.domain.tags import parse_tag
from fleet.services.importing import Numbered, RowRefused, checked_row

COLUMNS = ("device_id", "model", "hardware_serial", "key_sha256", "tags", "groups")
NEEDED = ("device_id", "model")
ROW_SIZE_MAX = 64 * 1024  # characters; a row with all the tags there may be has 10,000
READ_SIZE = 64 * 1024

Items = Iterator[Numbered | RowRefused]


def rows_of(file: TextIO, name: str) -> Items:
    """The rows of `file`. Its first character tells the format: `[` a JSON array, `{` JSON lines, else CSV.

    Raises: Invalid (`bad-manifest`): it can't be read on from some line.
    """
    text = _Text(file)
    first = text.peek()
    if first == "[":
        return _from_array(text)
    if first == "{":
        return _from_lines(text)
    if first == "":
        raise Invalid("bad-manifest", f"{name} is empty.", f"Its first line names its columns: {','.join(COLUMNS)}")
    return _from_csv(text, name)


class _Text:
    """Characters of a file, read as they are needed, and at which line they stand."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self.buffer = ""
        self.line = 1
        self.at_end = False

    def more(self) -> bool:
        """Whether there was more to read. Raises: Invalid (`bad-manifest`): it is not UTF-8."""
        try:
            read = self._file.read(READ_SIZE)
        except UnicodeDecodeError as error:
            raise Invalid("bad-manifest", f"After line {self.line} the file is not UTF-8.") from error
        self.at_end = not read
        self.buffer += read
        return bool(read)

    def drop(self, count: int) -> None:
        self.line += self.buffer.count("\n", 0, count)
        self.buffer = self.buffer[count:]

    def peek(self) -> str:
        """The next character that is no space, "" at the end."""
        while True:
            stripped = self.buffer.lstrip("\ufeff \t\r\n")
            self.drop(len(self.buffer) - len(stripped))
            if self.buffer or not self.more():
                return self.buffer[:1]

    def lines(self) -> Iterator[str]:
        """Each line with its end; `line` numbers the next one. Raises: Invalid (`bad-manifest`): one is too long."""
        while True:
            start, end = 0, self.buffer.find("\n")
            while end >= 0:
                self.line += 1
                yield self.buffer[start : end + 1]
                start, end = end + 1, self.buffer.find("\n", end + 1)
            self.buffer = self.buffer[start:]
            if len(self.buffer) > ROW_SIZE_MAX:
                raise Invalid("bad-manifest", f"Line {self.line} is longer than {ROW_SIZE_MAX} characters.")
            if not self.more():
                if self.buffer:
                    last, self.buffer = self.buffer, ""
                    self.line += 1
                    yield last
                return


def _from_csv(text: _Text, name: str) -> Items:
    reader = csv.reader(text.lines(), strict=True)
    begun = text.line
    try:
        header = [cell.strip().lower() for cell in next(reader)]
    except (csv.Error, StopIteration) as error:
        raise Invalid("bad-manifest", f"The first line of {name} cannot be read: {error}.") from error
    strange = [column for column in header if column not in COLUMNS]
    missing = [column for column in NEEDED if column not in header]
    if strange or missing or len(set(header)) != len(header):
        raise Invalid(
            "bad-manifest",
            f"The first line of {name} does not name the columns of a manifest: {', '.join(header)[:200]!r}.",
            f"Columns: {','.join(COLUMNS)}; of these {' and '.join(NEEDED)} must be there, each once.",
        )
    while True:
        begun = text.line
        try:
            cells = next(reader, None)
        except csv.Error as error:
            # Where the next row begins is unknown: an open quote swallows lines.
            raise Invalid("bad-manifest", f"Line {begun}: {error}; nothing after it was read.") from error
        if cells is None:
            return
        if cells:
            yield _row(begun, lambda given: _csv_fields(header, given), cells)


def _csv_fields(header: list[str], cells: list[str]) -> Mapping[str, Any]:
    if len(cells) != len(header):
        raise Invalid("bad-row", f"The row has {len(cells)} columns, not {len(header)}.")
    fields: dict[str, Any] = {column: cell.strip() for column, cell in zip(header, cells, strict=True)}
    fields["tags"] = tuple(parse_tag(each) for each in _split(fields.get("tags", "")))
    fields["groups"] = _split(fields.get("groups", ""))
    return fields


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(";") if part.strip()]


def _from_lines(text: _Text) -> Items:
    begun = text.line
    for line in text.lines():
        if line.strip():
            yield _row(begun, _json_of, line)
        begun = text.line


def _json_of(line: str) -> Mapping[str, Any]:
    try:
        return _json_fields(json.loads(line))
    except (json.JSONDecodeError, RecursionError) as error:
        raise Invalid("bad-row", f"The row is not JSON: {error}.") from error


def _from_array(text: _Text) -> Items:
    decoder = json.JSONDecoder()
    text.drop(1)
    follows = text.peek()
    while follows != "]":
        begun = text.line
        value, end = _next_value(decoder, text)
        text.drop(end)
        yield _row(begun, _json_fields, value)
        follows = text.peek()
        if follows == ",":
            text.drop(1)
            text.peek()  # another row, and not the end, comes after it
        elif follows != "]":
            raise Invalid("bad-manifest", f"Line {text.line}: a comma or the array's end is missing.")
    text.drop(1)
    if text.peek():
        raise Invalid("bad-manifest", f"Line {text.line}: there is something after the array's end.")


def _next_value(decoder: json.JSONDecoder, text: _Text) -> tuple[Any, int]:
    while True:
        try:
            value, end = decoder.raw_decode(text.buffer)
        except (json.JSONDecodeError, RecursionError) as error:
            if len(text.buffer) > ROW_SIZE_MAX or not text.more():
                raise Invalid("bad-manifest", f"Line {text.line}: not JSON; nothing after it was read.") from error
            continue
        if end < len(text.buffer) or not text.more():  # a number could go on behind the buffer's end
            return value, end


def _json_fields(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise Invalid("bad-row", "The row is not a JSON object.")
    strange = [str(name)[:80] for name in value if name not in COLUMNS]
    if strange:
        raise Invalid("bad-row", f"The row has {strange[0]!r}, which is none of: {', '.join(COLUMNS)}.")
    fields = {name: item for name, item in value.items() if item is not None}
    texts = [fields.get(name, "") for name in COLUMNS[:4]]
    tags, groups = fields.get("tags", {}), fields.get("groups", [])
    if not all(isinstance(each, str) for each in texts):
        raise Invalid("bad-row", f"{', '.join(COLUMNS[:4])} are texts.")
    if not isinstance(tags, dict) or not all(isinstance(each, str) for each in tags.values()):
        raise Invalid("bad-row", "tags is an object of texts.")
    if not isinstance(groups, list) or not all(isinstance(each, str) for each in groups):
        raise Invalid("bad-row", "groups is a list of texts.")
    return {**fields, "tags": tuple(tags.items())}


def _row(line: int, fields_of: Callable[[Any], Mapping[str, Any]], given: Any) -> Numbered | RowRefused:
    id_text = ""
    try:
        fields = fields_of(given)
        id_text = fields.get("device_id", "")
        for name in NEEDED:
            if not fields.get(name):
                raise Invalid("bad-row", f"The row has no {name}.")
        row = checked_row(
            id_text,
            fields["model"],
            fields.get("hardware_serial", ""),
            key_hash(fields.get("key_sha256", "").lower()),
            fields["tags"],
            fields.get("groups", ()),
        )
    except FleetError as error:
        return RowRefused(line, id_text[:80], error.code, f"{error.message} {error.advice}".rstrip())
    return Numbered(line, row)
