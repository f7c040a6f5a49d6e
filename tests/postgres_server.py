"""A real PostgreSQL for tests: a cluster of its own in a temporary folder, on a free loopback port, ended with them.

PostgreSQL refuses to run as root, so for root it runs as the user `postgres`, or else `nobody`.
"""

import asyncio
import contextlib
import itertools
import os
import pwd
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import asyncpg

from fleet.database_url import parse_database_url
from fleet.storage.postgres import PostgresRegistry
from tests.free_ports import free_ports

VERSION_MIN = 15
START_SECONDS_MAX = 60.0
PORTS_TRIED_MAX = 5
USER = "fleet"
PASSWORD = "a pass/word: 100%"
COMMON = ("shared_buffers=32MB", "max_connections=60", "unix_socket_permissions=0777")
MEMORY = Path("/dev/shm")  # a database more takes a hundredth of the time there
MEMORY_BYTES_MIN = 2 * 1024**3
FAST = ("fsync=off", "full_page_writes=off")  # for clusters that no test kills


def programs() -> Path | None:
    """The folder that holds `initdb` and `pg_ctl`, of a version that will do; None when there is none."""
    folders = [Path(found).resolve().parent] if (found := shutil.which("pg_ctl")) else []
    packaged = Path("/usr/lib/postgresql").glob("*/bin")
    folders += sorted(packaged, key=lambda p: int(p.parent.name), reverse=True)
    for folder in folders:
        if all((folder / name).exists() for name in ("initdb", "pg_ctl", "postgres")):
            said = subprocess.run([folder / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
            if int(said.split()[2].split(".")[0]) >= VERSION_MIN:
                return folder
    return None


def _as_its_user() -> dict[str, Any]:
    """What makes a child of ours run as a user that PostgreSQL accepts."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            found = pwd.getpwnam(name)
            return {"user": found.pw_uid, "group": found.pw_gid, "extra_groups": []}
    raise LookupError("there is no user that PostgreSQL could run as")


class PostgresServer:
    """One cluster. `start`, `kill` and `stop` may follow one another.

    Local connections (`url`) need no password; those over TCP (`tcp_url`) need PASSWORD.
    """

    def __init__(self, binaries: Path, folder: Path, options: tuple[str, ...]) -> None:
        self._binaries = binaries
        self.folder = folder
        self.data = folder / "data"
        self.log = folder / "log"
        self.port = 0
        self._options = (*COMMON, *options)
        self._numbers = itertools.count(1)

    def _call(self, program: str, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self._binaries / program, *words],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=START_SECONDS_MAX * 2,
            check=False,
            **_as_its_user(),
        )

    def make(self) -> None:
        secret = self.folder / "secret"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        words = ["-D", str(self.data), "-U", USER, "-E", "UTF8", "--locale=C", "--no-sync", f"--pwfile={secret}"]
        done = self._call("initdb", *words, "--auth-local=trust", "--auth-host=scram-sha-256")
        assert done.returncode == 0, done.stdout
        secret.unlink()

    def start(self) -> None:
        """Returns when it accepts connections: on the port of its last start, if it had one."""
        deadline = time.monotonic() + START_SECONDS_MAX
        ports = [self.port] if self.port else free_ports(PORTS_TRIED_MAX)
        for port in itertools.cycle(ports):  # after a kill, its last children hold on to the memory for a moment
            words = [f"port={port}", "listen_addresses=127.0.0.1", f"unix_socket_directories={self.folder}"]
            options = " ".join(f"-c {word}" for word in (*words, *self._options))
            # -l: or its children would hold our pipe open for as long as they live.
            done = self._call("pg_ctl", "start", "-w", "-s", "-D", str(self.data), "-l", str(self.log), "-o", options)
            if done.returncode == 0:
                self.port = port
                return
            assert time.monotonic() < deadline, done.stdout + self.log.read_text()
            select.select([], [], [], 0.05)

    def stop(self, how: str = "fast") -> None:
        """Stop it if it runs: `fast` rolls back and disconnects everybody, `immediate` is a crash."""
        if (self.data / "postmaster.pid").exists():
            self._call("pg_ctl", "stop", "-w", "-s", "-D", str(self.data), "-m", how)

    def kill(self) -> None:
        """kill -9 of the server's first process, as when the system runs out of memory."""
        pid = int((self.data / "postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGKILL)

    def url(self, database: str) -> str:
        return f"postgresql://{USER}@/{database}?host={quote(str(self.folder))}&port={self.port}"

    def tcp_url(self, database: str) -> str:
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{database}"

    def run(self, sql: str, database: str = "postgres") -> Any:
        """The first column of the first row that `sql` gives."""
        with ThreadPoolExecutor(1) as apart:  # from an event loop that may run in this thread
            return apart.submit(asyncio.run, self._run(sql, database)).result()

    async def _run(self, sql: str, database: str) -> Any:
        connection = await asyncpg.connect(self.url(database))
        try:
            return await connection.fetchval(sql)
        finally:
            await connection.close()

    def make_database(self, template: str = "template1") -> str:
        """A new database of the cluster, by its name."""
        name = f"t{next(self._numbers)}"
        self.run(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def drop_database(self, name: str) -> None:
        """Whoever is connected is put out."""
        self.run(f"DROP DATABASE {name} WITH (FORCE)")

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
    # Not below pytest's own folders: those are closed to every other user, and too long for a socket's path.
    in_memory = options == FAST and MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > MEMORY_BYTES_MIN
    folder = Path(tempfile.mkdtemp(prefix="fleet-pg-", dir=MEMORY if in_memory else None))
    server = PostgresServer(binaries, folder, options)
    try:
        if user := _as_its_user():
            os.chown(folder, user["user"], user["group"])
        folder.chmod(0o711)
        server.make()
        server.start()
        yield server
    finally:
        server.stop("immediate")
        shutil.rmtree(folder, ignore_errors=True)
