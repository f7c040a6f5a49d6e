"""What commands on a home's own files work with. For others, the API's client opens the home."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from fleet.domain.access import Act
from fleet.home.layout import Home, open_home, open_registry, revocation_log
from fleet.home.unix_user import unix_user
from fleet.services.revocation_journal import catch_up
from fleet.storage.engines import Engine

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class OpenHome:
    """A home and its open registry."""

    home: Home
    registry: Engine


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[OpenHome]:
    """The home at `path` with its registry open. Revocations are written to the journal at the end.

    Raises: NotFound: no home there. Unavailable: the registry cannot be opened. Refused (`registry-went-back`).
    """
    home = open_home(path)
    registry = await open_registry(home)
    try:
        journal = revocation_log(home)
        await catch_up(registry, journal)
        yield OpenHome(home, registry)
        await catch_up(registry, journal)
    finally:
        await registry.close()


def run(work: Coroutine[Any, Any, _Result]) -> _Result:
    """Run a command's asynchronous part to its end."""
    return asyncio.run(work)


def utc_now() -> datetime:
    """Current UTC time."""
    return datetime.now(UTC)


def act_now() -> Act:
    """A change made now by the user of this machine."""
    return Act(unix_user(), utc_now())
