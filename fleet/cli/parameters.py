"""Types of arguments and options: what is written wrongly is a wrong use (exit 2), named with the value.

Ids and names complete in the shell, from the fleet that --home or --url names; nothing is offered when it cannot be
asked.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from typing import Any

import click
from click.shell_completion import CompletionItem

from fleet.cli.errors import explained
from fleet.cli.options import LOCATION, Checked, client_at
from fleet.client.client import Client
from fleet.domain.device import device_id, plain_name
from fleet.domain.device_filter import parse_filter, parse_time
from fleet.domain.errors import Invalid
from fleet.domain.request_filter import parse_request_filter
from fleet.domain.tags import parse_tag, tag_key

COMPLETIONS_MAX = 100


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
GROUP = Checked("NAME", partial(plain_name, what="group"))
TIME = Checked("TIME", _time)
"""30d from now, a date, or an RFC 3339 time: gives a datetime."""
PAST_TIME = Checked("TIME", _past_time)
"""30d ago, now, a date, or an RFC 3339 time: gives a datetime."""
FILTER = Checked("FILTER", _filter)
"""A device filter that can be read: gives its text."""
REQUEST_FILTER = Checked("FILTER", _request_filter)
"""A filter of approval requests that can be read: gives its text."""
TAG = Checked("KEY=VALUE", parse_tag)
TAG_KEY = Checked("KEY", tag_key)
