"""What a served home keeps its registry in, as far as a run that kills things must know: how a home is made on it, and
how the processes that it may have of its own are killed and started.
"""

from pathlib import Path
from typing import Protocol

from hw_bench.peers.home import FleetHome
from hw_bench.processes import BenchError

SQLITE = "sqlite"


class Engine(Protocol):
    """A registry's engine. `start` first, then `home`; `kill` and `start` as often as one likes; `stop` last."""

    @property
    def name(self) -> str: ...
    def start(self) -> None:
        """Returns when it takes connections. Raises: BenchError."""
        ...

    def home(self, path: Path) -> FleetHome:
        """A new home whose registry it keeps. Raises: BenchError."""
        ...

    def kill(self) -> None:
        """kill -9, as a power cut would."""
        ...

    def stop(self) -> None:
        """It is gone when this returns."""
        ...


class Embedded:
    """SQLite: a file that lives and dies with the processes that have it open."""

    name = SQLITE

    def start(self) -> None:
        """There is nothing to start."""

    def home(self, path: Path) -> FleetHome:
        home = FleetHome(path)
        home.fleet("init", str(path))
        return home

    def kill(self) -> None:
        """Killing who has it open is killing it."""

    def stop(self) -> None:
        """There is nothing to stop."""


def engine_of(url: str) -> Engine:
    """The engine that `url` names. Raises: BenchError."""
    if url == SQLITE:
        return Embedded()
    raise BenchError(f"{url!r} is no engine that can be killed here; known is {SQLITE}.")
