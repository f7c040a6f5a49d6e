"""A real PostgreSQL for tests: the bench's cluster, in memory where no test kills it, with registries in it."""

import asyncio
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from fleet.config.database_url import parse_database_url
from fleet.storage.postgres.registry import PostgresRegistry
from hw_bench.peers.postgres import PASSWORD, USER, Cluster, new_folder, programs
from tests import server_logs

__all__ = ["PASSWORD", "USER", "PostgresServer", "programs", "running_postgres"]

MEMORY = Path("/dev/shm")  # a database more takes a hundredth of the time there
MEMORY_BYTES_MIN = 2 * 1024**3
FAST = ("fsync=off", "full_page_writes=off")  # for clusters that no test kills


class PostgresServer(Cluster):
    """A cluster that can make registries."""

    def make_registry(self) -> str:
        """A new database with an empty registry in it."""
        name = self.make_database()

        async def make() -> None:
            registry = await PostgresRegistry.open(parse_database_url(self.url(name)))
            await registry.close()

        with ThreadPoolExecutor(1) as apart:
            apart.submit(asyncio.run, make()).result()
        return name


@contextmanager
def running_postgres(binaries: Path, options: tuple[str, ...] = FAST) -> Iterator[PostgresServer]:
    """A new cluster, running; at the end it is gone."""
    in_memory = options == FAST and MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > MEMORY_BYTES_MIN
    # Not below pytest's own folders: those are closed to every other user, and too long for a socket's path.
    with new_folder(MEMORY if in_memory else None) as folder:
        server = PostgresServer(binaries, folder, options)
        server_logs.add_file("PostgreSQL", server.log, server.data.is_dir)
        try:
            server.make()
            server.start()
            yield server
        finally:
            server.stop("immediate")
