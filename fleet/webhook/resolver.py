"""Name resolution for webhooks: one lookup of a name at a time, each in a thread of its own, and no local addresses.

A lookup that hangs keeps its own name's callers waiting and no others, as asyncio's few threads for all lookups would.
"""

import asyncio
import ipaddress
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult

from fleet.domain.errors import Unreachable

LOOKUPS_MAX = 64  # names, each a model's; one whose lookup hangs is among them until the system gives up

Found = list[tuple[Any, ...]]
"""What getaddrinfo returns."""


def must_be_remote(address: str) -> None:
    """Raises: Unreachable: `address` is this host's or its link's: services there trust who reaches them."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address):
        parsed = parsed.ipv4_mapped or parsed
    is_this_net = parsed.version == 4 and parsed in _THIS_NETWORK
    if is_this_net or parsed.is_loopback or parsed.is_link_local or parsed.is_unspecified or parsed.is_multicast:
        raise Unreachable("its address is a loopback or link-local one, which webhook_local does not allow")


_THIS_NETWORK = ipaddress.ip_network("0.0.0.0/8")  # RFC 1122, 3.2.1.3


class Resolver(AbstractResolver):
    """Resolves names for one event loop. `look_up`: getaddrinfo, which may block."""

    def __init__(self, *, local_allowed: bool, look_up: Callable[..., Found] = socket.getaddrinfo) -> None:
        self._local_allowed, self._look_up = local_allowed, look_up
        self._under_way: dict[str, asyncio.Future[Found]] = {}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Raises: OSError: the name has no address. Unreachable: it has a local one; too many lookups are under way."""
        found = self._under_way.get(host)
        if found is None:
            if len(self._under_way) >= LOOKUPS_MAX:
                raise Unreachable("too many names are being resolved already")
            found = self._started(host)
        results = []
        for kind, _, protocol, _, address in await asyncio.shield(found):
            if not self._local_allowed:
                must_be_remote(address[0])
            flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
            results.append(
                ResolveResult(hostname=host, host=address[0], port=port, family=kind, proto=protocol, flags=flags)
            )
        return results

    def _started(self, host: str) -> asyncio.Future[Found]:
        loop = asyncio.get_running_loop()
        found: asyncio.Future[Found] = loop.create_future()
        self._under_way[host] = found
        found.add_done_callback(lambda done: self._ended(host, done))
        # A daemon: one that hangs keeps no process from ending.
        threading.Thread(target=self._run, args=(loop, host, found), name="webhook-dns", daemon=True).start()
        return found

    def _run(self, loop: asyncio.AbstractEventLoop, host: str, found: asyncio.Future[Found]) -> None:
        result: Found | OSError
        try:
            result = self._look_up(host, None, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
        except OSError as error:
            result = error
        except UnicodeError:  # a label that is too long, or empty
            result = OSError("no such name")
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(_settle, found, result)

    def _ended(self, host: str, found: asyncio.Future[Found]) -> None:
        del self._under_way[host]
        if not found.cancelled():
            found.exception()  # the caller may have left

    async def close(self) -> None:
        for found in list(self._under_way.values()):
            found.cancel()


def _settle(found: asyncio.Future[Found], result: Found | OSError) -> None:
    if found.done():
        return
    if isinstance(result, OSError):
        found.set_exception(result)
    else:
        found.set_result(result)
