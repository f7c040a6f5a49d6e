"""Database engines of a registry: creating a home on one, and counting, killing and starting its processes."""

import contextlib
import random
from pathlib import Path
from typing import Protocol

from hw_bench.peers import postgres
from hw_bench.peers.home import FleetHome, disable_rate_limits
from hw_bench.processes import BenchError

SQLITE, POSTGRES = "sqlite", "postgres"
FIRST_PROCESS_SHARE = 0.3  # of the kills: the postmaster, which takes the whole server down
ON_DISK = ("fsync=on", "full_page_writes=on", "synchronous_commit=on")  # the defaults of an installation
# Of a size for a registry to be measured in; a throwaway cluster of tests makes do with less.
ROOMY = ("shared_buffers=1GB", "max_wal_size=8GB", "checkpoint_timeout=30min")


class Engine(Protocol):
    """A registry's engine. Call `start` first, then `home`; `kill*` and `start` any number of times; `stop` last."""

    @property
    def name(self) -> str: ...
    @property
    def pids(self) -> tuple[int, ...]:
        """Its server processes, descendants not listed; empty for an embedded engine."""
        ...

    def start(self) -> None:
        """Start it, and return when it accepts connections. Raises: BenchError."""
        ...

    def home(self, path: Path) -> FleetHome:
        """Create a home with its registry on this engine. Raises: BenchError."""
        ...

    def kill(self) -> None:
        """kill -9, as a power cut would."""
        ...

    def kill_one(self, chance: random.Random) -> bool:
        """kill -9 one of its processes while it serves; False when it has none.

        When this returns it recovers by itself or has been started again. Raises: BenchError.
        """
        ...

    def stop(self) -> None:
        """Stop it, and return when it has ended."""
        ...


class SqliteEngine:
    """SQLite: embedded in the server's processes."""

    name = SQLITE
    pids = ()

    def start(self) -> None:
        """Nothing to start."""

    def home(self, path: Path) -> FleetHome:
        home = FleetHome(path)
        home.fleet("init", str(path))
        disable_rate_limits(home.files.settings_file)
        return home

    def kill(self) -> None:
        """Nothing to kill: it lives in the server's processes."""

    def kill_one(self, chance: random.Random) -> bool:
        return False

    def stop(self) -> None:
        """Nothing to stop."""


class PostgresEngine:
    """PostgreSQL: a private cluster on disk with fsync at each commit, and a database for each home.

    With the folder `kept`, the cluster is created there and kept; a later run reuses it.
    """

    name = POSTGRES

    def __init__(self, kept: Path | None = None) -> None:
        self._end = contextlib.ExitStack()
        self._kept = kept
        self._cluster: postgres.Cluster | None = None

    @property
    def cluster(self) -> postgres.Cluster:
        if self._cluster is None:
            raise BenchError("PostgreSQL has not been started.")
        return self._cluster

    @property
    def pids(self) -> tuple[int, ...]:
        return (self.cluster.pid,)

    def start(self) -> None:
        if self._cluster is None:
            binaries = postgres.programs()
            if binaries is None:
                raise BenchError(f"{postgres.missing()}.")
            if self._kept is None:
                folder = self._end.enter_context(postgres.new_folder())
            else:
                self._kept.mkdir(exist_ok=True)
                postgres.hand_over(folder := self._kept)
            self._cluster = postgres.Cluster(binaries, folder, ON_DISK + ROOMY)
            self._end.callback(self._cluster.stop, "immediate" if self._kept is None else "fast")
            port = folder / "port"  # homes store the port, so a kept cluster must listen on the same one
            if port.exists():
                self._cluster.port = int(port.read_text())
            else:
                self._cluster.make()
            self._cluster.start()
            port.write_text(str(self._cluster.port))
            return
        self._cluster.start()

    def home(self, path: Path) -> FleetHome:
        home = FleetHome(path)
        home.fleet("init", str(path), "--database", self.cluster.url(self.cluster.make_database()))
        disable_rate_limits(home.files.settings_file)
        return home

    def kill(self) -> None:
        self.cluster.kill()

    def kill_one(self, chance: random.Random) -> bool:
        if chance.random() >= FIRST_PROCESS_SHARE:
            return self.cluster.kill_child(chance)
        self.kill()
        self.start()
        return True

    def stop(self) -> None:
        self._end.close()


def engine_of(name: str, kept: Path | None = None) -> Engine:
    """The engine called `name`; SQLite when empty. A PostgreSQL cluster is kept in `kept`, if given.

    Raises: BenchError.
    """
    if name in ("", SQLITE):
        return SqliteEngine()
    if name == POSTGRES:
        return PostgresEngine(kept)
    raise BenchError(f"{name!r} is not a known engine; choose {SQLITE} or {POSTGRES}.")
