"""In-process transport: the API at a home itself, with no server and no listener.

The user of this machine who can write to the home has every permission; the audit names it "user NAME".
"""

import asyncio
import functools
from collections.abc import Mapping
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from fleet.client.transport import Answer
from fleet.domain.access import Operator, Role
from fleet.domain.approval import WaitingLimits
from fleet.home.layout import Home, opened, settings_of, waiting_limits
from fleet.home.unix_user import act_now
from fleet.servers.admin.app import AdminApp
from fleet.servers.admin.context import Context
from fleet.servers.admin.messages import Caller, Headers, Request, body_of
from fleet.storage.engines import Engine

if TYPE_CHECKING:
    from fleet.domain.crl import CrlHead
    from fleet.servers.admin.ca_access import CaAccess
    from fleet.services.retention import Policy


class HomeTransport:
    """Dispatches requests to an AdminApp on the home at `path`; the registry is opened by the first one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._runner = asyncio.Runner()
        self._opening = AsyncExitStack()
        self._opened: tuple[AdminApp, Caller] | None = None

    def send(self, method: str, target: str, headers: Mapping[str, str], body: bytes | None) -> Answer:
        """Raises: NotFound (`no-home`), Refused (`home-exposed`, `registry-went-back`), Unavailable, Invalid: the home
        cannot be opened.
        """
        return self._runner.run(self._sent(method, target, headers, body or b""))

    async def _sent(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        if self._opened is None:
            act = act_now()
            home, registry = await self._opening.enter_async_context(opened(self._path))
            self._opened = (
                AdminApp(_context(home, registry, act.now)),
                Caller(act.actor, Operator(act.actor, Role.ADMIN, act.now)),
            )
        app, caller = self._opened
        reply = await app.dispatch(Request(method, target, Headers(headers.items()), body_of(body), caller=caller))
        return Answer(reply.status, Headers(reply.headers.items()), reply.body)

    def close(self) -> None:
        """Write to the revocation journal what was revoked meanwhile, and close the registry."""
        try:
            if self._opened is not None:
                self._opened = None
                self._runner.run(self._opening.aclose())
        finally:
            self._runner.close()


def _context(home: Home, registry: Engine, now: datetime) -> Context:
    """CAs and what else needs heavy libraries are loaded by the requests that use them."""

    @functools.cache
    def authorities() -> "CaAccess":
        from fleet.home.ca_listing import authorities_for_admin

        return authorities_for_admin(home, now)

    def retention() -> "Policy":
        from fleet.runtime.jobs.retention import policy_of

        return policy_of(settings_of(home))

    def tenants() -> list[str]:
        from fleet.home.authorities import tenant_names

        return list(tenant_names(home))

    def waiting() -> WaitingLimits:
        return waiting_limits(settings_of(home))

    async def issue_crls(at: datetime, validity: timedelta | None) -> "list[CrlHead]":
        from fleet.runtime.jobs import crls

        return await crls.issue_crls(home, registry, at, validity)

    @functools.cache
    def key() -> bytes:
        from fleet.home.pki import cursor_key

        return cursor_key(home)

    return Context(
        registry,
        authorities,
        retention,
        tenants=tenants,
        waiting=waiting,
        cursor_key=key,
        issue_crls=issue_crls,
        started=now,
    )
