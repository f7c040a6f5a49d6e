"""In-process transport: the API at a home itself, with no server and no listener.

The user of this machine who can write to the home has every permission; the audit names it "user NAME".
"""

import asyncio
import functools
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from fleet.client.client import Answer
from fleet.domain.access import Operator, Role
from fleet.domain.errors import Refused
from fleet.home.layout import Home, opened, settings_of, waiting_limits
from fleet.home.unix_user import act_now
from fleet.servers.admin.app import AdminApp
from fleet.servers.admin.context import Context
from fleet.servers.admin.messages import Caller, Headers, Request, body_of
from fleet.storage.engines import Engine

if TYPE_CHECKING:
    from fleet.domain.crl import CrlHead
    from fleet.servers.admin.ca_access import CaAccess
    from fleet.services.crl_report import CrlReport
    from fleet.services.notifying import Notifier
    from fleet.services.retention import Policy


class HomeTransport:
    """Dispatches requests to an AdminApp on the home at `path`; the registry is opened by the first one.

    Where the revocation journal is lost, `warn` gets the refusal, and requests that only read are answered.
    """

    def __init__(self, path: Path, warn: Callable[[Refused], None] | None = None) -> None:
        self._path = path
        self._warn = warn
        self._lost: Refused | None = None
        self._runner = asyncio.Runner()
        self._opening = AsyncExitStack()
        self._opened: tuple[AdminApp, Caller] | None = None

    def send(self, method: str, target: str, headers: Mapping[str, str], body: bytes | None) -> Answer:
        """Raises: NotFound (`no-home`), Refused (`home-exposed`, `registry-went-back`), Unavailable, Invalid: the home
        cannot be opened.
        """
        return self._runner.run(self._sent(method, target, headers, body or b""))

    async def _sent(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        reads = method == "GET"
        if self._lost is not None and not reads:
            raise self._lost
        if self._opened is None:
            act = act_now()
            lost = self._only_reading if reads and self._warn is not None else None
            home, registry = await self._opening.enter_async_context(opened(self._path, lost))
            self._opened = (
                AdminApp(_context(home, registry, act.now, self._opening)),
                Caller(act.actor, Operator(act.actor, Role.ADMIN, act.now)),
            )
        app, caller = self._opened
        reply = await app.dispatch(Request(method, target, Headers(headers.items()), body_of(body), caller=caller))
        return Answer(reply.status, Headers(reply.headers.items()), reply.body)

    def _only_reading(self, lost: Refused) -> None:
        self._lost = lost
        if self._warn is not None:
            self._warn(lost)

    def close(self) -> None:
        """Write to the revocation journal what was revoked meanwhile, and close the registry."""
        try:
            if self._opened is not None:
                self._opened = None
                self._runner.run(self._opening.aclose())
        finally:
            self._runner.close()


def _context(home: Home, registry: Engine, now: datetime, opening: AsyncExitStack) -> Context:
    """CAs and what else needs heavy libraries are loaded by the requests that use them."""

    @functools.cache
    def authorities() -> "CaAccess":
        from fleet.home.home_cas import authorities_for_admin

        return authorities_for_admin(home, now)

    def retention() -> "Policy":
        from fleet.home.retention_policy import retention_policy

        return retention_policy(settings_of(home))

    def tenants() -> list[str]:
        from fleet.home.authorities import tenant_names

        return list(tenant_names(home))

    async def issue(at: datetime, validity: timedelta | None) -> "list[CrlHead]":
        from fleet.home.crl_issuing import issue_crls

        return await issue_crls(home, registry, at, validity)

    async def crl_report(at: datetime) -> "CrlReport":
        from fleet.home.authorities import read_authorities
        from fleet.home.crl_issuing import crl_reporter

        return await crl_reporter(home, registry, settings_of(home), lambda: read_authorities(home)).at(at)

    @functools.cache
    def key() -> bytes:
        from fleet.home.pki import cursor_key

        return cursor_key(home)

    @functools.cache
    def notifier() -> "Notifier":
        from fleet.runtime.home_notifier import home_notifier

        found, close = home_notifier(home)
        opening.push_async_callback(close)
        return found

    return Context(
        registry,
        authorities,
        retention,
        tenants=tenants,
        waiting=lambda: waiting_limits(settings_of(home)),
        cursor_key=key,
        issue_crls=issue,
        notifier=notifier,
        crl_report=crl_report,
        packet_size_max=lambda: settings_of(home).packet_size_max,
        refuses_dots=lambda: settings_of(home).upstream_refuse_dots,
        started=now,
    )
