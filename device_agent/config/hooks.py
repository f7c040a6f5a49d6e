"""Deploy hooks, as agent.toml declares them: what is copied where, and what runs, once a certificate is in use.

    [[hook]]
    name = "nginx"
    run = ["systemctl", "reload", "nginx"]     # no shell
    [[hook.copy]]
    content = "pair"                           # see CONTENTS
    to = "/etc/nginx/tls/device.pem"
    group = "www-data"
    mode = "0640"

Standard library only: the long-lived process reads them too.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleet.est_client.errors import BadConfig

HOOKS_MAX = 16
COPIES_MAX = 16  # of one hook
ARGUMENTS_MAX = 64
TIMEOUT_SECONDS = 30.0
TIMEOUT_SECONDS_MAX = 600.0
RETRY_SECONDS = 10.0
RETRY_SECONDS_MAX = 3600.0

CONTENTS = ("certificate", "issuers", "chain", "key", "pair", "anchors")
"""The device's certificate; its issuers; both; the key; key and chain; the home's ca.pem."""
SECRET = frozenset({"key", "pair"})
ROOT_ADVICE = "it takes a service that root has installed, or a home of root's"
FORMS = {
    "pem": frozenset(CONTENTS),
    "der": frozenset({"certificate", "key"}),
    "p7b": frozenset(CONTENTS) - SECRET,
    "p12": frozenset({"pair"}),
}
"""What each form can hold."""
_FORM_BY_SUFFIX = {".der": "der", ".p7b": "p7b", ".p12": "p12", ".pfx": "p12"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")
_MODE = re.compile(r"0?[0-7]{3}")
_HOOK_KEYS = frozenset({"name", "run", "user", "timeout_seconds", "retry_seconds", "copy"})
_COPY_KEYS = frozenset({"content", "to", "form", "owner", "group", "mode", "password_file"})


@dataclass(frozen=True, slots=True)
class Copy:
    content: str
    to: Path
    form: str
    mode: int
    owner: str = ""
    """A name or number; "" leaves the agent's own."""
    group: str = ""
    password_file: Path | None = None
    """Of PKCS#12."""


@dataclass(frozen=True, slots=True)
class Hook:
    name: str
    copies: tuple[Copy, ...] = ()
    run: tuple[str, ...] = ()
    user: str = ""
    """Whom `run` runs as; "" is the agent's own user."""
    timeout_seconds: float = TIMEOUT_SECONDS
    retry_seconds: float = RETRY_SECONDS
    """After the first failure; doubled after each, up to RETRY_SECONDS_MAX."""

    @property
    def digest(self) -> str:
        """Changes with what the hook does: a changed hook is deployed again."""
        return hashlib.sha256(repr((self.copies, self.run, self.user)).encode()).hexdigest()[:16]


def read_hooks(where: str, tables: object, lines: Sequence[int] = ()) -> tuple[Hook, ...]:
    """The value of `hook` in agent.toml, in its order; `lines`: where each begins.

    Raises: BadConfig, which begins with `where`.
    """
    hooks = tuple(
        _hook(f"{where}{f', line {lines[number - 1]}' if number <= len(lines) else ''}: hook {number}", table)
        for number, table in _tables(f"{where}: hook", tables, HOOKS_MAX)
    )
    names = [hook.name for hook in hooks]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise BadConfig(f"{where}: two hooks are named {twice!r}.")
    places = [copy.to for hook in hooks for copy in hook.copies]
    if same := next((place for place in places if places.count(place) > 1), None):
        raise BadConfig(f"{where}: two copies go to {same}.")
    return hooks


def _tables(where: str, tables: object, most: int) -> Iterator[tuple[int, dict[str, Any]]]:
    if not isinstance(tables, list) or len(tables) > most or not all(isinstance(each, dict) for each in tables):
        raise BadConfig(
            f"{where} must be a list of at most {most} tables.", "Begin each with [[hook]] or [[hook.copy]]."
        )
    yield from enumerate(tables, 1)


def _hook(where: str, table: dict[str, Any]) -> Hook:
    _check_keys(where, table, _HOOK_KEYS)
    name = _text(where, table, "name")
    if not _NAME.fullmatch(name):
        raise BadConfig(f"{where}: name must be 1 to 32 letters, digits, dots, dashes and underscores.")
    where = f"{where} ({name})"
    run = table.get("run", [])
    is_list = isinstance(run, list) and len(run) <= ARGUMENTS_MAX
    if not is_list or not all(isinstance(word, str) and word and "\0" not in word for word in run):
        raise BadConfig(
            f"{where}: run must be a list of at most {ARGUMENTS_MAX} arguments.",
            'There is no shell, unless you name one: ["sh", "-c", "..."].',
        )
    copies = tuple(
        _copy(f"{where}, copy {number}", each)
        for number, each in _tables(f"{where}: copy", table.get("copy", []), COPIES_MAX)
    )
    if not copies and not run:
        raise BadConfig(f"{where} has neither run nor a copy.")
    timeout = _seconds(where, table, "timeout_seconds", TIMEOUT_SECONDS, TIMEOUT_SECONDS_MAX)
    retry = _seconds(where, table, "retry_seconds", RETRY_SECONDS, RETRY_SECONDS_MAX)
    return Hook(name, copies, tuple(run), _text(where, table, "user"), timeout, retry)


def _copy(where: str, table: dict[str, Any]) -> Copy:
    _check_keys(where, table, _COPY_KEYS)
    content, to = _text(where, table, "content"), _path(where, table, "to")
    if content not in CONTENTS:
        raise BadConfig(f"{where}: content must be one of {', '.join(CONTENTS)}.")
    if to is None:
        raise BadConfig(f"{where}: to is missing.")
    form = _text(where, table, "form") or _FORM_BY_SUFFIX.get(to.suffix.lower(), "pem")
    if content not in FORMS.get(form, frozenset()):
        fitting = [each for each, contents in FORMS.items() if content in contents]
        raise BadConfig(f"{where}: {content} cannot be written as {form!r}.", f"Its forms are {', '.join(fitting)}.")
    mode = table.get("mode", "0600" if content in SECRET else "0644")
    if not isinstance(mode, str) or not _MODE.fullmatch(mode):
        raise BadConfig(f'{where}: mode must be octal in quotes, as in mode = "0640".')
    if content in SECRET and int(mode, 8) & 0o007:
        raise BadConfig(f"{where}: mode {mode} lets every user read the private key.", 'Use a group and mode = "0640".')
    password_file = _path(where, table, "password_file")
    if (form == "p12") != (password_file is not None):
        raise BadConfig(f"{where}: p12 needs a password_file, and nothing else has one.")
    return Copy(
        content, to, form, int(mode, 8), _text(where, table, "owner"), _text(where, table, "group"), password_file
    )


def _check_keys(where: str, table: dict[str, Any], known: frozenset[str]) -> None:
    if unknown := next((key for key in table if key not in known), None):
        raise BadConfig(f"{where}: there is no setting {unknown!r}.", f"There are {', '.join(sorted(known))}.")


def _text(where: str, table: dict[str, Any], key: str) -> str:
    value = table.get(key, "")
    if not isinstance(value, str) or not (value.isprintable() or not value):
        raise BadConfig(f"{where}: {key} must be a string.")
    return value


def _path(where: str, table: dict[str, Any], key: str) -> Path | None:
    text = _text(where, table, key)
    if text and (not text.startswith("/") or text.endswith("/") or ".." in Path(text).parts):
        raise BadConfig(f"{where}: {key} must be the absolute path of a file.")
    return Path(text) if text else None


def _seconds(where: str, table: dict[str, Any], key: str, default: float, most: float) -> float:
    value = table.get(key, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0.1 <= value <= most:
        raise BadConfig(f"{where}: {key} must be a number from 0.1 to {most:g}.")
    return float(value)
