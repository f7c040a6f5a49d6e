"""Types of arguments and options: what is written wrongly is a wrong use (exit 2), named with the value.

Ids and names complete in the shell, from the fleet that --home or --url names; nothing is offered when it cannot be
asked.
"""

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem
from msgspec import Raw

from fleet.cli.errors import explained
from fleet.cli.options import LOCATION, Checked, client_at
from fleet.client.client import Client
from fleet.domain.device import device_id, plain_name
from fleet.domain.device_filter import parse_filter, parse_time
from fleet.domain.errors import Invalid
from fleet.domain.request_filter import parse_request_filter
from fleet.domain.tags import parse_tag, tag_key
from fleet.wire import strict_json
from fleet.wire.errors import WireError

COMPLETIONS_MAX = 100
JSON_SIZE_MAX = 128 * 1024  # with indents; what is sent has half of it
PATH_SIZE_MAX = 4096  # Linux's PATH_MAX

_UNITS = {"w": "weeks", "d": "days", "h": "hours", "m": "minutes", "s": "seconds"}
_PART = r"[0-9]{1,9}[wdhms]"
_SIZES = {"": 1, "kib": 1024, "mib": 1024**2, "gib": 1024**3}


@contextmanager
def wrong_use() -> Iterator[None]:
    """What our readers call invalid in the block was written wrongly on the command line."""
    try:
        yield
    except Invalid as error:
        raise click.UsageError(explained(error)) from error


class ListedName(Checked):
    """An id or a name that the API lists under `key` at `path`, completed in the shell."""

    def __init__(self, name: str, read: Callable[[str], Any], path: str, key: str = "name") -> None:
        super().__init__(name, read)
        self.path, self.key = path, key

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        try:
            with ctx, client_at(**{name: ctx.params.get(name) for name in LOCATION}) as client:
                matching = (text for text in self._texts(client, incomplete) if text.startswith(incomplete))
                return [CompletionItem(text) for text in islice(matching, COMPLETIONS_MAX)]
        except Exception:  # a shell that waits for completions has no place for an error
            return []

    def _texts(self, client: Client, incomplete: str) -> Iterator[str]:
        return (str(row[self.key]) for row in client.items(self.path))


class _ListedDevice(ListedName):
    """Of devices there may be a million: the listing begins after what has been typed, and one page is looked at."""

    def _texts(self, client: Client, incomplete: str) -> Iterator[str]:
        return (row["id"] for row in client.items(self.path, COMPLETIONS_MAX, after=incomplete or None))


class ListedRequest(ListedName):
    """A request in one of these states: what a command can act on. Any request can be given."""

    def __init__(self, states: Iterable[str]) -> None:
        super().__init__("REQUEST_ID", partial(_id, what="request", digits=16), "/v1/requests", "id")
        self.states = sorted(states)

    def _texts(self, client: Client, incomplete: str) -> Iterator[str]:
        return (row["id"] for state in self.states for row in client.items(self.path, state=state))


class _ListedTenant(ListedName):
    """The API lists tenants with their CAs, in one page."""

    def _texts(self, client: Client, incomplete: str) -> Iterator[str]:
        return iter(sorted({each["tenant"] for each in client.get(self.path)["items"]} - {""}))


def _id(text: str, what: str, digits: int) -> str:
    if not re.fullmatch(f"[0-9a-f]{{{digits}}}", text):
        raise ValueError(f"{text[:80]!r} is not the id of a {what}: {digits} hex digits.")
    return text


def _fingerprint(text: str) -> str:
    digits = text.lower().replace(":", "")
    if not re.fullmatch("[0-9a-f]{64}", digits):
        raise ValueError(f"{text[:80]!r} is not the SHA-256 fingerprint of a certificate: 64 hex digits.")
    return digits


def _serial(text: str) -> str:
    digits = text.lower().removeprefix("0x").replace(":", "").lstrip("0")
    if not re.fullmatch("[0-9a-f]{1,40}", digits):
        raise ValueError(f"{text[:80]!r} is not the serial number of a certificate: up to 40 hex digits.")
    return digits


def _token_id(text: str) -> str:
    if "." in text:  # and the text is not repeated
        raise ValueError("Give the id alone, the part before the dot: a secret does not belong on a command line.")
    return _id(text, "token", 12)


def _time(text: str) -> datetime:
    return parse_time(text, datetime.now(UTC))


def _past_time(text: str) -> datetime:
    """As `_time`, but a duration counts back from now."""
    now = datetime.now(UTC)
    moment = now if text == "now" else _time(text)
    return now - (moment - now) if re.fullmatch(r"[0-9]+[wdhm]", text) else moment


def _filter(text: str) -> str:
    parse_filter(text, datetime.now(UTC))
    return text


def _request_filter(text: str) -> str:
    parse_request_filter(text, datetime.now(UTC))
    return text


def _duration(maximum: timedelta = timedelta.max) -> Checked:
    """A timedelta, greater than zero and at most `maximum`."""

    def read(given: str) -> timedelta:
        text = given.strip().lower()
        if not re.fullmatch(f"({_PART})+", text):
            raise ValueError(f"{given[:40]!r} is not a duration; write 90s, 15m, 1h or 30d.")
        try:
            total = sum((timedelta(**{_UNITS[p[-1]]: int(p[:-1])}) for p in re.findall(_PART, text)), timedelta())
        except OverflowError:
            raise ValueError(f"{text[:40]!r} is too long.") from None
        if not total:
            raise ValueError("a duration must be greater than zero.")
        if total > maximum:
            raise ValueError(f"{text[:40]!r} is too long: at most {duration_text(maximum)}.")
        return total

    return Checked("duration", read)


def duration_text(value: timedelta) -> str:
    """`value` as it is written on the command line: "30d", "1h30m"; below a second, "0s"."""
    left = int(value.total_seconds())
    text = ""
    for letter, seconds in (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, seconds)
        text += f"{count}{letter}" if count else ""
    return text or "0s"


def size_in_bytes(maximum: int) -> Checked:
    """A number of bytes, at most `maximum`: bytes, or 64KiB, 1MiB."""

    def read(given: str) -> int:
        found = re.fullmatch(r"([0-9]{1,20}) ?((?:[kmg]ib)?)", given.strip().lower())
        if found is None:
            raise ValueError(f"{given[:40]!r} is not a size: write bytes, or 64KiB, 1MiB.")
        size = int(found[1]) * _SIZES[found[2]]
        if size > maximum:
            raise ValueError(f"{given[:40]!r} is too large: at most {size_text(maximum)}.")
        return size

    return Checked("size", read)


def size_text(size: int) -> str:
    """`size` as it is written on the command line: "64KiB"; in bytes where no unit divides it."""
    for unit in ("GiB", "MiB", "KiB"):
        if size and size % _SIZES[unit.lower()] == 0:
            return f"{size // _SIZES[unit.lower()]}{unit}"
    return str(size)


def _json_text(given: str) -> Raw:
    text, what = given.encode(errors="replace"), "It"
    if given.startswith("@"):
        try:
            with Path(given[1:]).open("rb") as file:
                text = file.read(JSON_SIZE_MAX + 1)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "not a file's name"
            raise ValueError(f"{given[1:PATH_SIZE_MAX]!r} cannot be read: {reason}.") from error
        what = repr(given[1:PATH_SIZE_MAX])
    if len(text) > JSON_SIZE_MAX:
        raise ValueError(f"It has more than {size_text(JSON_SIZE_MAX)}: {given[:80]!r}.")
    try:
        strict_json.loads(text)
    except WireError as error:
        raise ValueError(f"{what} is not JSON in UTF-8: {_problem_in(text, str(error))}") from error
    return Raw(text.strip())


def _problem_in(text: bytes, otherwise: str) -> str:
    """Why it is no JSON, and where; `otherwise`: what our stricter reader has against it."""
    try:
        json.loads(text.decode())
    except UnicodeDecodeError as error:
        return f"byte {error.start} is not UTF-8."
    except json.JSONDecodeError as error:
        quoting = "" if error.pos else " A text is written in quotes, and a file's name after @."
        return f"{error.msg}, at line {error.lineno}, column {error.colno}.{quoting}"
    except RecursionError:
        pass
    except ValueError:
        return f"a number is too long: more than {sys.get_int_max_str_digits()} digits."
    return otherwise


def _named(what: str, path: str) -> ListedName:
    return ListedName("NAME", partial(plain_name, what=what), path)


DEVICE_ID = _ListedDevice("DEVICE_ID", device_id, "/v1/devices", "id")
MODEL = _named("model", "/v1/models")
STATION = _named("station", "/v1/stations")
CLAIM = _named("claim", "/v1/claims")
ANCHOR = _named("manufacturer's CA", "/v1/anchors")
OPERATOR = _named("person or program", "/v1/operators")
TOKEN_ID = ListedName("TOKEN_ID", _token_id, "/v1/tokens", "id")
DISTRUST_ID = ListedName("DISTRUST_ID", partial(_id, what="distrust", digits=12), "/v1/distrusts", "id")
REQUEST_ID = ListedName("REQUEST_ID", partial(_id, what="request", digits=16), "/v1/requests", "id")
TENANT = _ListedTenant("NAME", partial(plain_name, what="tenant"), "/v1/authorities")
TENANT_IF_ANY = _ListedTenant("NAME", lambda text: plain_name(text, "tenant") if text else "", "/v1/authorities")
"""A tenant, or "" for none."""
SHA256 = Checked("SHA256", _fingerprint)
SERIAL = Checked("SERIAL", _serial)
GROUP = Checked("NAME", partial(plain_name, what="group"))
TIME = Checked("TIME", _time)
"""30d from now, a date, or an RFC 3339 time: gives a datetime."""
PAST_TIME = Checked("TIME", _past_time)
"""30d ago, now, a date, or an RFC 3339 time: gives a datetime."""
FILTER = Checked("FILTER", _filter)
"""A device filter that can be read: gives its text."""
REQUEST_FILTER = Checked("FILTER", _request_filter)
"""A filter of approval requests that can be read: gives its text."""
DURATION = _duration()
"""90s, 15m, 1h, 30d, 2w, or several together, as in 1h30m: gives a timedelta."""
CERTIFICATE_LIFETIME = _duration(timedelta(days=3650))
TOKEN_LIFETIME = _duration(timedelta(days=90))
TAG = Checked("KEY=VALUE", parse_tag)
JSON_TEXT = Checked("JSON|@FILE", _json_text)
"""JSON, or @ and a file that holds it: gives it as it is written, for a body of the API."""
TAG_KEY = Checked("KEY", tag_key)
