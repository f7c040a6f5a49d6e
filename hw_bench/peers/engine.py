"""What a served home keeps its registry in, as far as a run must know: how a home is made on it, and how the processes
that it may have of its own are counted, killed and started.
"""

import contextlib
import random
from pathlib import Path
from typing import Protocol

from hw_bench.peers import postgres
from hw_bench.peers.home import FleetHome, unlimited
from hw_bench.processes import BenchError

SQLITE, POSTGRES = "sqlite", "postgres"
FIRST_PROCESS_SHARE = 0.3  # of the kills of a server with children: the whole of it goes down, and is started again
ON_DISK = ("fsync=on", "full_page_writes=on", "synchronous_commit=on")  # as who installs it finds it
# Of a size for a registry to be measured in; a throwaway cluster of tests makes do with less.
ROOMY = ("shared_buffers=1GB", "max_wal_size=8GB", "checkpoint_timeout=30min")


class Engine(Protocol):
    """A registry's engine. `start` first, then `home`; the kills and `start` as often as one likes; `stop` last."""

    @property
    def name(self) -> str: ...
    @property
    def pids(self) -> tuple[int, ...]:
        """Of the processes that it has of its own; what they start belongs to it too."""
        ...

    def start(self) -> None:
        """Returns when it takes connections. Raises: BenchError."""
        ...

    def home(self, path: Path) -> FleetHome:
        """A new home whose registry it keeps. Raises: BenchError."""
        ...

    def kill(self) -> None:
        """kill -9, as a power cut would."""
        ...

    def kill_one(self, chance: random.Random) -> bool:
        """kill -9 of any one of its processes under those whom it serves; False when it has none of its own.

        It comes back by itself, or has been started again. Raises: BenchError.
        """
        ...

    def stop(self) -> None:
        """It is gone when this returns."""
        ...


class Embedded:
    """SQLite: a file that lives and dies with the processes that have it open."""

    name = SQLITE
    pids = ()

    def start(self) -> None:
        """There is nothing to start."""

    def home(self, path: Path) -> FleetHome:
        home = FleetHome(path)
        home.fleet("init", str(path))
        unlimited(home.files.settings_file)
        return home

    def kill(self) -> None:
        """Killing who has it open is killing it."""

    def kill_one(self, chance: random.Random) -> bool:
        return False

    def stop(self) -> None:
        """There is nothing to stop."""


class Throwaway:
    """PostgreSQL: a cluster of the run's own on disk, where a commit is an fsync; a database in it for each home.

    With `kept`, a folder, the cluster stands in there and stays; a later one goes on with it.
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
            port = folder / "port"  # homes know it: a kept cluster is found where it was
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
        unlimited(home.files.settings_file)
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
    """The engine that `name` names; SQLite when it is empty. What it has of its own stays in `kept`, if given.

    Raises: BenchError.
    """
    if name in ("", SQLITE):
        return Embedded()
    if name == POSTGRES:
        return Throwaway(kept)
    raise BenchError(f"{name!r} is no engine that can be started here; known are {SQLITE} and {POSTGRES}.")
