"""Types of arguments and options: what is written wrongly is a wrong use (exit 2), named with the value.

Ids and names complete in the shell, from the fleet that --home or --url names; nothing is offered when it cannot be
asked.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import click
from click.shell_completion import CompletionItem

from fleet.cli.errors import explained
from fleet.client.client import Client
from fleet.domain.errors import Invalid

COMPLETIONS_MAX = 100


class Checked(click.ParamType[Any]):
    """A value that one of our readers judges: it raises ValueError or Invalid."""

    def __init__(self, name: str, read: Callable[[str], Any]) -> None:
        self.name = name
        self._read = read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._read(value)
        except Invalid as error:
            return self.fail(explained(error), param, ctx)
        except ValueError as error:
            return self.fail(str(error), param, ctx)


@contextmanager
def wrong_use() -> Iterator[None]:
    """What our readers call invalid in the block was written wrongly on the command line."""
    try:
        yield
    except Invalid as error:
        raise click.UsageError(explained(error)) from error


class Listed(Checked):
    """An id or a name that the API lists under `key` at `path`, completed in the shell."""

    _looked_at: int | None = None

    def __init__(self, name: str, read: Callable[[str], Any], path: str, key: str = "name") -> None:
        super().__init__(name, read)
        self._path, self._key = path, key

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        try:
            return [CompletionItem(text) for text in self._found(ctx, incomplete)]
        except Exception:  # a shell that waits for completions has no place for an error
            return []

    def _found(self, ctx: click.Context, incomplete: str) -> list[str]:
        with ctx, _client_of(ctx) as client:
            rows = client.items(self._path, self._looked_at, **self._query(incomplete))
            found = (str(row[self._key]) for row in rows)
            matching = (text for text in found if text.startswith(incomplete))
            return [text for text, _ in zip(matching, range(COMPLETIONS_MAX), strict=False)]

    def _query(self, incomplete: str) -> dict[str, object]:
        return {}


class _ListedDevice(Listed):
    """Of devices there may be a million: the listing begins after what has been typed, and one page is looked at."""

    _looked_at = COMPLETIONS_MAX

    def _query(self, incomplete: str) -> dict[str, object]:
        return {"after": incomplete or None}


class _ListedTenant(Listed):
    """The API lists tenants with their CAs, in one page."""

    def _found(self, ctx: click.Context, incomplete: str) -> list[str]:
        with ctx, _client_of(ctx) as client:
            names = {each["tenant"] for each in client.get(self._path)["items"]}
        return sorted(name for name in names if name and name.startswith(incomplete))


def _client_of(ctx: click.Context) -> Client:
    """The client of the fleet that the words before the one to complete name."""
    from fleet.cli.location import client_at

    return client_at(**{name: ctx.params.get(name) for name in ("home", "url", "cert", "key", "ca")})


def _device_id(text: str) -> str:
    from fleet.domain.device import device_id

    return device_id(text)


def _name(what: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        from fleet.domain.device import plain_name

        return plain_name(text, what)

    return read


def _id(what: str, digits: int) -> Callable[[str], str]:
    def read(text: str) -> str:
        if not re.fullmatch(f"[0-9a-f]{{{digits}}}", text):
            raise ValueError(f"{text[:80]!r} is not the id of a {what}: {digits} hex digits.")
        return text

    return read


def _tenant(text: str) -> str:
    return _name("tenant")(text) if text else ""


def _fingerprint(text: str) -> str:
    digits = text.lower().replace(":", "")
    if not re.fullmatch("[0-9a-f]{64}", digits):
        raise ValueError(f"{text[:80]!r} is not the SHA-256 fingerprint of a certificate: 64 hex digits.")
    return digits


def _token_id(text: str) -> str:
    if "." in text:  # and the text is not repeated
        raise ValueError("Give the id alone, the part before the dot: a secret does not belong on a command line.")
    return _id("token", 12)(text)


def _time(text: str) -> datetime:
    from fleet.domain.device_filter import parse_time

    return parse_time(text, datetime.now(UTC))


def _past_time(text: str) -> datetime:
    """As `_time`, but a duration counts back from now."""
    now = datetime.now(UTC)
    moment = now if text == "now" else _time(text)
    return now - (moment - now) if re.fullmatch(r"[0-9]+[wdhm]", text) else moment


def _filter(text: str) -> str:
    from fleet.domain.device_filter import parse_filter

    parse_filter(text, datetime.now(UTC))
    return text


def _tag(text: str) -> tuple[str, str]:
    from fleet.domain.tags import parse_tag

    return parse_tag(text)


def _tag_key(text: str) -> str:
    from fleet.domain.tags import tag_key

    return tag_key(text)


def _url(text: str) -> str:
    from fleet.client.https import host_and_port

    host_and_port(text)
    return text


def _reason(text: str) -> str:
    from fleet.services.revocation import checked_reason

    return checked_reason(text)


DEVICE_ID = _ListedDevice("DEVICE_ID", _device_id, "/v1/devices", "id")
MODEL = Listed("NAME", _name("model"), "/v1/models")
STATION = Listed("NAME", _name("station"), "/v1/stations")
CLAIM = Listed("NAME", _name("claim"), "/v1/claims")
ANCHOR = Listed("NAME", _name("manufacturer's CA"), "/v1/anchors")
OPERATOR = Listed("NAME", _name("person or program"), "/v1/operators")
TOKEN_ID = Listed("TOKEN_ID", _token_id, "/v1/tokens", "id")
REQUEST_ID = Listed("REQUEST_ID", _id("request", 16), "/v1/requests", "id")
TENANT = _ListedTenant("NAME", _name("tenant"), "/v1/authorities")
TENANT_IF_ANY = _ListedTenant("NAME", _tenant, "/v1/authorities")
"""A tenant, or "" for none."""
SHA256 = Checked("SHA256", _fingerprint)
GROUP = Checked("NAME", _name("group"))
TIME = Checked("TIME", _time)
PAST_TIME = Checked("TIME", _past_time)
"""30d from now, a date, or an RFC 3339 time: gives a datetime."""
FILTER = Checked("FILTER", _filter)
"""A device filter that can be read: gives its text."""
TAG = Checked("KEY=VALUE", _tag)
TAG_KEY = Checked("KEY", _tag_key)
REASON = Checked("TEXT", _reason)
URL = Checked("URL", _url)
