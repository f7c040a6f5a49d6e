"""The database setting of a restored home's fleet.toml; the rest of the file stays unchanged."""

import re
from pathlib import Path

from msgspec.structs import replace

from fleet.config.addresses import Database
from fleet.config.settings_file import SettingsError, parse_settings, read_settings
from fleet.domain.errors import Invalid

_TABLE = re.compile(r"^[ \t]*\[[ \t]*registry[ \t]*\][^\n]*\n?", re.MULTILINE)
_SETTING = re.compile(r"^[ \t]*database[ \t]*=[^\n]*$", re.MULTILINE)
_NEXT_TABLE = re.compile(r"^[ \t]*\[", re.MULTILINE)


def name_database(file: Path, database: Database) -> None:
    """Set `database` in the settings `file`, unless it is set so already.

    Raises: Invalid (`bad-settings`): its line cannot be found. SettingsError, OSError.
    """
    settings = read_settings(file)
    if settings.database == database:
        return
    text = with_database(file.read_text("utf-8"), database)
    try:
        is_done = parse_settings(text, file) == replace(settings, database=database)
    except SettingsError:
        is_done = False
    if not is_done:
        raise Invalid(
            "bad-settings",
            "The backup's fleet.toml says where the registry is in a way that cannot be changed here.",
            'Write it as one line, database = "…", below [registry], and take the backup again.',
        )
    file.write_text(text, "utf-8")


def with_database(text: str, database: Database) -> str:
    """`text`, a fleet.toml, with the line `database = ...` replaced or inserted."""
    value = str(database).replace("\\", "\\\\").replace('"', '\\"')
    line = f'database = "{value}"'
    table = _TABLE.search(text)
    if table is None:
        return f"{text.rstrip()}\n\n[registry]\n{line}\n"
    following = _NEXT_TABLE.search(text, table.end())
    end = following.start() if following else len(text)
    found = _SETTING.search(text, table.end(), end)
    if found is None:
        return f"{text[: table.end()].rstrip()}\n{line}\n{text[table.end() :]}"
    return text[: found.start()] + line + text[found.end() :]
