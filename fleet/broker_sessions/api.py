"""The management API of RabbitMQ and the REST API of EMQX, as far as sessions of devices are concerned.

    async with opened(broker) as sessions:
        await sessions.end("cam-1")

The administrator's password is sent to the broker's verified certificate, or on this machine's loopback, alone.
"""

import ssl
from base64 import b64encode
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
from msgspec import Struct
from yarl import URL

from fleet.config.secret_files import first_line
from fleet.domain.client_ids import device_of
from fleet.domain.errors import Invalid, Unavailable
from fleet.domain.files_of_settings import password_file
from fleet.wire import strict_json
from fleet.wire.errors import WireError

SECONDS_MAX = 5.0
ANSWER_SIZE_MAX = 4 * 1024 * 1024
CREDENTIALS_SIZE_MAX = 4096
SETTING = "broker_sessions.password_file"
PAGES_MAX = 100_000
PAGE = 100  # sessions, of some 2 KB each in EMQX's answer


class Shape(Struct, frozen=True):
    """How a kind of broker is asked. Paths have a place for a name, or the number of a page from 1 on."""

    end: str
    ended: frozenset[int]
    """Statuses that say that there is no session any more."""
    page: str
    rows: str
    """Member of a page with its rows."""
    name: str
    """Member of a row with the name by which the session is ended: a device id, or a client id of a device."""
    beneath: str
    """Query of a page for sessions with a name in them; "": those of a device end together."""
    has_more: Callable[[Mapping[str, Any], int], bool]
    """Whether there are pages after this one, of this number."""


RABBITMQ = Shape(
    "/api/connections/username/{}",
    frozenset({204}),
    f"/api/connections?columns=user&page_size={PAGE}&page={{}}",
    "items",
    "user",
    "",
    lambda page, number: number < page["page_count"],
)
EMQX = Shape(
    "/api/v5/clients/{}",
    frozenset({204, 404}),
    f"/api/v5/clients?limit={PAGE}&page={{}}",
    "data",
    "clientid",
    "&like_clientid=",
    lambda page, number: len(page["data"]) == PAGE,
)
SHAPES = {"rabbitmq": RABBITMQ, "emqx": EMQX}


class BrokerApi(Struct, frozen=True):
    """Where the API is, and who administers the broker."""

    shape: Shape
    url: str
    """https://HOST:PORT, or http of this machine."""
    tls: ssl.SSLContext | None
    credentials_file: Path


class Sessions:
    """Those of one broker. Made by `opened`."""

    def __init__(self, client: aiohttp.ClientSession, broker: BrokerApi) -> None:
        self._client, self._broker = client, broker

    async def end(self, name: str) -> None:
        """End what sessions there are of the device `name`. Raises: Unavailable: `cannot-reach`, `broker-refused`."""
        await self._end(name)
        if beneath := self._broker.shape.beneath:
            found = [page async for page in self.names(f"{beneath}{quote(f'{name}/', safe='')}")]
            for client_id in set[str]().union(*found):
                if device_of(client_id) == name != client_id:
                    await self._end(client_id)

    async def _end(self, name: str) -> None:
        shape = self._broker.shape
        await self._ask("DELETE", shape.end.format(quote(name, safe="")), shape.ended)

    async def names(self, query: str = "") -> AsyncGenerator[set[str], None]:
        """Names that have sessions, page by page, of those that `query` selects.

        Raises: Unavailable: `cannot-reach`, `broker-refused`.
        """
        shape = self._broker.shape
        for number in range(1, PAGES_MAX):
            body = await self._ask("GET", f"{shape.page.format(number)}{query}", frozenset({200}))
            try:
                page = strict_json.loads(body)
                names = {row[shape.name] for row in page[shape.rows] if shape.name in row}
                is_last = not shape.has_more(page, number)
            except (WireError, KeyError, TypeError) as error:
                raise Unavailable("broker-refused", "The broker's answer is not a list of its sessions.") from error
            yield {name for name in names if isinstance(name, str)}
            if is_last:
                return

    async def _ask(self, method: str, target: str, good: frozenset[int]) -> bytes:
        try:
            url = URL(f"{self._broker.url}{target}", encoded=True)
            async with self._client.request(method, url, allow_redirects=False) as response:
                answer = bytearray()
                async for part in response.content.iter_any():
                    answer += part
                    if len(answer) > ANSWER_SIZE_MAX:
                        raise Unavailable("broker-refused", "The broker's answer is too large.")
        except (aiohttp.ClientError, OSError, ValueError) as error:  # TimeoutError is an OSError
            why = str(error) or "it does not answer in time"
            raise Unavailable("cannot-reach", f"The broker cannot be administered: {why}.") from error
        if response.status not in good:
            raise Unavailable("broker-refused", f"The broker answered {method} with status {response.status}.")
        return bytes(answer)


@asynccontextmanager
async def opened(broker: BrokerApi) -> AsyncIterator[Sessions]:
    """Raises: Invalid (`bad-password-file`)."""
    credentials = b64encode(credentials_in(broker.credentials_file).encode()).decode()
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=broker.tls if broker.tls is not None else True),
        headers={
            "Authorization": f"Basic {credentials}",
            "X-Reason": "refused by the fleet",
            "Accept": "application/json",
            "Accept-Encoding": "identity",
        },
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,  # no proxy from the environment, no .netrc
        timeout=aiohttp.ClientTimeout(total=SECONDS_MAX),
    ) as client:
        yield Sessions(client, broker)


def credentials_in(file: Path) -> str:
    """`USER:PASSWORD`, the first line of a file that nobody else can read. Raises: Invalid (`bad-password-file`)."""
    with password_file(SETTING, file):
        line = first_line(file, CREDENTIALS_SIZE_MAX).decode()
    user, colon, password = line.partition(":")
    if not (user and colon and password and line.isprintable()):
        what = f"{SETTING}: {file} does not hold USER:PASSWORD."
        raise Invalid("bad-password-file", what, f"See: {SETTING} in fleet.toml")
    return line
