"""Settings that a running server takes up from fleet.toml without ending a session, and what it says of the others.

`python -m fleet.runtime.live_settings` prints the table of fleet/README.md; a test keeps them equal.
"""

import logging
import sys
from collections.abc import Collection, Iterable

from msgspec.structs import fields, replace

from fleet.config.logs import log_event
from fleet.config.markdown import table_row
from fleet.config.settings import RELOADS, Reload, Settings, setting_name
from fleet.config.settings_file import SettingsError, parse_settings, sections_in
from fleet.config.template import render
from fleet.domain.errors import FleetError, Invalid
from fleet.home.layout import Home, settings_and_text

log = logging.getLogger("fleet")

IN_PLACE = frozenset(name for name, reload in RELOADS.items() if reload is Reload.SIGHUP)
BY_WORKERS = frozenset(name for name, reload in RELOADS.items() if reload is Reload.SIGUSR2)
"""SIGUSR2 puts those of SIGHUP in force, too."""
RESTART = "fleet.toml has changed since the start; restart to put it in force"
REPLACE = "fleet.toml has changed since the start; restart to put it in force, or with several workers send SIGUSR2"

_NEVER = object()


class LiveSettings:
    """Those in force. `home` holds fleet.toml; `current` has the command line's options in place of it."""

    def __init__(self, home: Home, current: Settings) -> None:
        self.current = current
        self._home = home
        self._known, text = settings_and_text(home)
        """As in fleet.toml, with what is in force of it."""
        self._sections = sections_in(text)
        """Of fleet.toml, when it was last taken."""
        self._waiting: dict[str, object] = {}
        """Values that need a restart, as they were logged."""

    def reread(self, fields_taken: Collection[str] = IN_PLACE) -> bool:
        """Put in force what has changed of these fields, and log each change. False: fleet.toml cannot be used, and
        nothing has changed.
        """
        try:
            found, text = settings_and_text(self._home)
            self._must_be_whole(text)
            current = self._with(found, fields_taken)
        except (FleetError, OSError) as error:
            log_event(log, logging.ERROR, "settings", outcome="failed", kept="old", reason=error)
            return False
        changed = [name for name in _names() if getattr(found, name) != getattr(self._known, name)]
        for name in changed:
            if name in fields_taken:
                log_event(log, logging.INFO, "settings", outcome="reloaded", changed=setting_name(name))
            elif self._waiting.get(name, _NEVER) != getattr(found, name):
                reason = REPLACE if name in BY_WORKERS else RESTART
                log_event(
                    log,
                    logging.WARNING,
                    "settings",
                    outcome="restart-needed",
                    changed=setting_name(name),
                    reason=reason,
                )
        if not changed:  # as after a mistake that was put right: who sent the signal wants an answer
            log_event(log, logging.INFO, "settings", outcome="unchanged")
        taken = {name: getattr(found, name) for name in changed if name in fields_taken}
        self._waiting = {name: getattr(found, name) for name in changed if name not in fields_taken}
        self.current, self._known, self._sections = current, replace(self._known, **taken), sections_in(text)
        return True

    def _with(self, found: Settings, fields_taken: Collection[str]) -> Settings:
        """Those in force with what has changed of these fields. Raises: Invalid (`bad-settings`): they do not go
        together, or not with those that need a restart.
        """
        taken = {name: getattr(found, name) for name in fields_taken}
        changed = {name: value for name, value in taken.items() if value != getattr(self._known, name)}
        current = replace(self.current, **changed)
        try:
            parse_settings(render(current), self._home.settings_file)
        except SettingsError as error:
            message = f"fleet.toml cannot be put in force without a restart: {error.problem}"
            raise Invalid("bad-settings", message) from error
        return current

    def _must_be_whole(self, text: str) -> None:
        """Raises: Invalid (`bad-settings`): `text` may be the beginning of a file that is being written."""
        if not text.endswith("\n"):
            raise Invalid("bad-settings", "fleet.toml has no newline at its end: it may be half-written")
        if lost := sorted(self._sections - sections_in(text)):
            names = ", ".join(f"[{each}]" for each in lost)
            message = f"fleet.toml has no {names} any more: it may be half-written; a restart takes it as it is"
            raise Invalid("bad-settings", message)

    def put_back(self, before: Settings, names: Collection[str] = IN_PLACE | BY_WORKERS) -> None:
        """Of these, those of `before` are in force again: what has been read since cannot be used."""
        changed = {
            name: getattr(before, name) for name in names if getattr(before, name) != getattr(self.current, name)
        }
        self.current, self._known = replace(self.current, **changed), replace(self._known, **changed)


def _names() -> Iterable[str]:
    return (each.name for each in fields(Settings))


def settings_table() -> str:
    """In Markdown: a line for each section of fleet.toml."""
    sections: dict[str, tuple[list[str], ...]] = {}
    for name in _names():
        section, _, key = setting_name(name).partition(".")
        sections.setdefault(section, ([], [], []))[list(Reload).index(RELOADS[name])].append(f"`{key}`")
    head = "| section | SIGHUP | SIGUSR2 | restart |\n| --- | --- | --- | --- |\n"
    return head + "".join(table_row((f"`{name}`", *map(", ".join, each))) for name, each in sections.items())


if __name__ == "__main__":
    sys.stdout.write(settings_table())
