"""In-process transport: the API at a home itself, with no server and no listener.

The user of this machine who can write to the home has every permission; the audit names it "user NAME".
"""

import asyncio
import functools
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from fleet.client.transport import Answer
from fleet.domain.access import Operator, Role
from fleet.domain.approval import WaitingLimits
from fleet.home.layout import Home, open_home, open_registry, revocation_log, settings_of, waiting_limits
from fleet.home.unix_user import unix_user
from fleet.servers.admin.app import AdminApp
from fleet.servers.admin.context import Context
from fleet.servers.admin.messages import Caller, Headers, Request, body_of
from fleet.services.revocation_journal import catch_up
from fleet.storage.engines import Engine

if TYPE_CHECKING:
    from fleet.servers.admin.authorities import Authorities
    from fleet.services.retention import Policy


class HomeTransport:
    """Dispatches requests to an AdminApp on the home at `path`; the registry is opened by the first one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._runner = asyncio.Runner()
        self._opened: _OpenHome | None = None

    def send(self, method: str, target: str, headers: Mapping[str, str], body: bytes | None) -> Answer:
        """Raises: NotFound (`no-home`), Refused (`home-exposed`, `registry-went-back`), Unavailable, Invalid: the home
        cannot be opened.
        """
        return self._runner.run(self._sent(method, target, headers, body or b""))

    async def _sent(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        if self._opened is None:
            self._opened = await _OpenHome.open(self._path)
        request = Request(method, target, Headers(headers.items()), body_of(body), caller=self._opened.caller)
        reply = await self._opened.app.dispatch(request)
        return Answer(reply.status, Headers(reply.headers.items()), reply.body)

    def close(self) -> None:
        """Note in the revocation log what was revoked meanwhile, and close the registry."""
        try:
            if self._opened is not None:
                self._runner.run(self._opened.close())
                self._opened = None
        finally:
            self._runner.close()


class _OpenHome:
    def __init__(self, home: Home, registry: Engine, now: datetime) -> None:
        self._home, self._registry = home, registry
        self.app = AdminApp(
            Context(
                registry,
                functools.cache(lambda: _authorities(home, now)),
                lambda: _retention(home),
                tenants=lambda: _tenants(home),
                waiting=lambda: _waiting(home),
                cursor_key=functools.cache(lambda: _cursor_key(home)),
                started=now,
            )
        )
        actor = unix_user()
        self.caller = Caller(actor, Operator(actor, Role.ADMIN, now))

    @classmethod
    async def open(cls, path: Path) -> "_OpenHome":
        home = open_home(path)
        registry = await open_registry(home)
        try:
            await catch_up(registry, revocation_log(home))
        except BaseException:
            await registry.close()
            raise
        return cls(home, registry, datetime.now(UTC))

    async def close(self) -> None:
        try:
            await catch_up(self._registry, revocation_log(self._home))
        finally:
            await self._registry.close()


# CAs and what else needs heavy libraries are loaded by the requests that use them.


def _authorities(home: Home, now: datetime) -> "Authorities":
    from fleet.home.ca_listing import authorities_for_admin

    return authorities_for_admin(home, now)


def _cursor_key(home: Home) -> bytes:
    from fleet.home.pki import cursor_key

    return cursor_key(home)


def _tenants(home: Home) -> list[str]:
    from fleet.home.tenants import tenant_names

    return list(tenant_names(home))


def _retention(home: Home) -> "Policy":
    from fleet.runtime.jobs.retention import policy_of

    return policy_of(settings_of(home))


def _waiting(home: Home) -> WaitingLimits:
    return waiting_limits(settings_of(home))
