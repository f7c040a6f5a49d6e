"""How a command finds its fleet: `--home`, or FLEET_HOME in the environment."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click

from fleet.ca.issuer import LocalIssuer
from fleet.home.layout import Home, open_home, open_registry, revocation_log
from fleet.home.pki import load_issuer
from fleet.services.revocation_journal import catch_up
from fleet.storage.engines import Engine

_Command = TypeVar("_Command", bound=Callable[..., object])
_Result = TypeVar("_Result")

OPERATOR = "operator"
"""Who acts when a command works on the home itself: whoever may read its files."""


def home_option(command: _Command) -> _Command:
    """Give a command `--home`, passed to it as `home`, a Path."""
    return click.option(
        "--home",
        type=click.Path(path_type=Path),
        envvar="FLEET_HOME",
        required=True,
        show_envvar=True,
        help="The fleet's home folder, made by `fleet init`.",
    )(command)


@dataclass(frozen=True, slots=True)
class OpenHome:
    """What a command works with."""

    home: Home
    registry: Engine

    def issuer(self) -> LocalIssuer:
        return load_issuer(self.home)


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[OpenHome]:
    """The home at `path` with its registry open. What has been revoked in it is noted at the end.

    Raises: NotFound: no home there. Unavailable: the registry cannot be opened. Refused (`registry-went-back`).
    """
    home = open_home(path)
    registry = await open_registry(home)
    try:
        log = revocation_log(home)
        await catch_up(registry, log)
        yield OpenHome(home, registry)
        await catch_up(registry, log)
    finally:
        await registry.close()


def run(work: Coroutine[Any, Any, _Result]) -> _Result:
    """Run a command's asynchronous part to its end."""
    return asyncio.run(work)


def utc_now() -> datetime:
    """The clock, read at the roof."""
    return datetime.now(UTC)
