"""`fleet.toml`, read once into Settings.

An unknown key, a value of the wrong type or out of range is an error that names the file, the line and the key, and
the server does not start. A misspelled key never falls back to a default.
"""

import re
import tomllib
from pathlib import Path
from typing import Any

from fleet.config.addresses import LocalAddress
from fleet.config.listeners import LOCAL_NAMES
from fleet.config.settings import FIELDS, READERS, Settings
from fleet.config.small_files import LargeFile, read_small

SETTINGS_SIZE_MAX = 256 * 1024  # a settings file is a page or two; anything larger is a mistake


class SettingsError(Exception):
    """`fleet.toml` cannot be used. The message names the file, the line and the key."""

    def __init__(self, file: Path, line: int, problem: str) -> None:
        super().__init__(f"{file}, line {line}: {problem}" if line else f"{file} {problem}")
        self.file, self.line, self.problem = file, line, problem


def read_settings(file: Path) -> Settings:
    """The settings in `file`. Raises: SettingsError."""
    return parse_settings(settings_text(file), file)


def settings_text(file: Path) -> str:
    """The text of `file`. Raises: SettingsError."""
    try:
        data = read_small(file, SETTINGS_SIZE_MAX)
    except LargeFile as error:
        raise SettingsError(file, 0, f"is larger than {SETTINGS_SIZE_MAX} bytes") from error
    except OSError as error:
        raise SettingsError(file, 0, f"cannot be read: {error.strerror}") from error
    try:
        return data.decode("utf-8-sig")  # an editor's byte order mark aside
    except UnicodeDecodeError as error:
        if data.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise SettingsError(file, 1, "is UTF-16; save it as UTF-8") from error
        raise SettingsError(file, data.count(b"\n", 0, error.start) + 1, "is not UTF-8") from error


def sections_in(text: str) -> frozenset[str]:
    """Those of a text that `parse_settings` takes."""
    return frozenset(tomllib.loads(text))


def parse_settings(text: str, file: Path) -> Settings:
    """The settings in `text`, which came from `file`. Raises: SettingsError."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"at line (\d+)", str(error))
        line = int(found[1]) if found else text.count("\n") + 1
        raise SettingsError(file, line, f"is not TOML: {error}") from error
    if not text.strip():
        raise SettingsError(file, 1, "is empty: `fleet init` writes one with every setting")
    values: dict[str, Any] = {}
    for table, keys in document.items():
        if table not in READERS or not isinstance(keys, dict):
            raise SettingsError(file, _line_of(text, table, None), f"{table!r} is not a section{_near(table, READERS)}")
        for key, value in keys.items():
            values[FIELDS[table, key]] = _read_value(file, text, table, key, value)
    settings = Settings(**values)
    if settings.proxy_trusted and not settings.proxy_listeners:
        problem = "proxy_protocol.listeners is empty: name those behind the trusted balancers, or trust none"
        raise SettingsError(file, _line_of(text, "proxy_protocol", "listeners"), problem)
    for table in LOCAL_NAMES:
        _check_local(file, text, settings, table)
    return settings


def _check_local(file: Path, text: str, settings: Settings, table: str) -> None:
    """On a TCP port every user of the machine could ask in the program's place. Raises: SettingsError."""
    listener: LocalAddress | None = getattr(settings, table)
    if listener is None or listener.address is None:
        return
    if not getattr(settings, f"{table}_secret_file"):
        problem = f"{table}.address is a TCP port: it needs {table}.secret_file"
        raise SettingsError(file, _line_of(text, table, "address"), problem)
    if getattr(settings, f"{table}_group"):
        problem = f"{table}.group is for a Unix socket, and {table}.address is a TCP port"
        raise SettingsError(file, _line_of(text, table, "group"), problem)


def _read_value(file: Path, text: str, table: str, key: str, value: Any) -> Any:
    if key not in READERS[table]:
        problem = f"{table}.{key} is not a setting{_near(key, READERS[table])}"
        raise SettingsError(file, _line_of(text, table, key), problem)
    try:
        return READERS[table][key](value)
    except ValueError as error:
        raise SettingsError(file, _line_of(text, table, key), f"{table}.{key} {error}") from error


def _near(word: str, known: dict[str, Any]) -> str:
    import difflib  # for the hint alone

    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(known)}"


def _line_of(text: str, table: str, key: str | None) -> int:
    """The line of `table` or of its `key`, which tomllib does not report."""
    inside, table_line = False, 1
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*\[\s*\"?([^\]\"]+?)\"?\s*\]", line)
        if header:
            inside = header[1] == table
            table_line = number if inside else table_line
        elif key is not None and inside and re.match(rf"\s*\"?{re.escape(key)}\"?\s*=", line):
            return number
        elif not inside and re.match(rf"\s*\"?{re.escape(table)}\"?\s*[.=]", line):
            table_line = number
    return table_line
