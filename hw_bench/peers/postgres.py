"""A private PostgreSQL cluster in a temporary folder, on a free loopback port. The tests use it too.

PostgreSQL refuses to run as root: started by root it runs as the user `postgres`, or else `nobody`.
"""

import asyncio
import contextlib
import itertools
import os
import pwd
import random
import secrets
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import asyncpg

from hw_bench.cpu_time import process_time, process_tree
from hw_bench.processes import BenchError, free_port, handle_of

VERSION_MIN = 15
START_SECONDS_MAX = 60.0
PORTS_TRIED_MAX = 5
RETRY_SECONDS = 0.05
NAME = "postgres"
"""Name of the server program, also in the process table."""
USER = "fleet"
PASSWORD = "a pass/word: 100%"  # noqa: S105  of temporary clusters on loopback
COMMON = ("shared_buffers=32MB", "max_connections=60", "unix_socket_permissions=0777")


def programs() -> Path | None:
    """The folder of `initdb` and `pg_ctl` in a supported version, or None."""
    folders = [Path(found).resolve().parent] if (found := shutil.which("pg_ctl")) else []
    packaged = Path("/usr/lib/postgresql").glob("*/bin")
    folders += sorted(packaged, key=lambda p: int(p.parent.name), reverse=True)
    for folder in folders:
        if all((folder / name).exists() for name in ("initdb", "pg_ctl", NAME)):
            text = subprocess.run([folder / NAME, "--version"], capture_output=True, text=True, check=True).stdout
            if int(text.split()[2].split(".")[0]) >= VERSION_MIN:
                return folder
    return None


def missing() -> str | None:
    """Why no cluster can be started on this machine, or None."""
    return None if programs() is not None else f"PostgreSQL {VERSION_MIN} or newer is not installed"


def _as_its_user() -> dict[str, Any]:
    """Arguments of `subprocess.run` that start a child as a user that PostgreSQL accepts."""
    if os.geteuid() != 0:
        return {}
    for name in (NAME, "nobody"):
        with contextlib.suppress(KeyError):
            found = pwd.getpwnam(name)
            return {"user": found.pw_uid, "group": found.pw_gid, "extra_groups": []}
    raise BenchError("PostgreSQL cannot run as root, and there is neither a user postgres nor nobody.")


class Cluster:
    """One cluster. Call `make` first, then `start`, `kill` and `stop` in any order.

    Local connections (`url`) need no password; those over TCP (`tcp_url`) need PASSWORD.
    """

    def __init__(self, binaries: Path, folder: Path, options: tuple[str, ...]) -> None:
        self._binaries = binaries
        self.folder = folder
        self.data = folder / "data"
        self.log = folder / "log"
        self.port = 0
        self._options = (*COMMON, *options)

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
        """Create it with initdb. Raises: BenchError."""
        secret = self.folder / "secret"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        words = ["-D", str(self.data), "-U", USER, "-E", "UTF8", "--locale=C", "--no-sync", f"--pwfile={secret}"]
        done = self._call("initdb", *words, "--auth-local=trust", "--auth-host=scram-sha-256")
        if done.returncode != 0:
            raise BenchError(f"creating a PostgreSQL cluster in {self.folder} failed: {done.stdout.strip()[-500:]}")
        secret.unlink()

    def start(self) -> None:
        """Start it on its last port, or a free one, and return when it accepts connections. Raises: BenchError."""
        deadline = time.monotonic() + START_SECONDS_MAX
        ports = [self.port] if self.port else [free_port() for _ in range(PORTS_TRIED_MAX)]
        for port in itertools.cycle(ports):  # after a kill, its last children keep shared memory in use for a moment
            words = [f"port={port}", "listen_addresses=127.0.0.1", f"unix_socket_directories={self.folder}"]
            options = " ".join(f"-c {word}" for word in (*words, *self._options))
            # -l: otherwise its children would inherit our pipe and keep it open.
            done = self._call("pg_ctl", "start", "-w", "-s", "-D", str(self.data), "-l", str(self.log), "-o", options)
            if done.returncode == 0:
                self.port = port
                return
            if time.monotonic() > deadline:
                raise BenchError(f"starting PostgreSQL failed: {done.stdout}{self.log.read_text()[-500:]}")
            select.select([], [], [], RETRY_SECONDS)

    def stop(self, how: str = "fast") -> None:
        """Stop it if it runs: `fast` rolls back and disconnects all clients, `immediate` is a crash."""
        with contextlib.suppress(FileNotFoundError, ProcessLookupError), handle_of(self.pid) as handle:
            # pg_ctl waits for the pid file to go, which happens just before the process ends.
            if self._call("pg_ctl", "stop", "-w", "-s", "-D", str(self.data), "-m", how).returncode == 0:
                select.select([handle], [], [], START_SECONDS_MAX)

    @property
    def pid(self) -> int:
        """The postmaster's pid; all other server processes are its children."""
        return int((self.data / "postmaster.pid").read_text().split()[0])

    def kill(self) -> None:
        """kill -9 the postmaster, as the kernel does when memory runs out."""
        os.kill(self.pid, signal.SIGKILL)

    def kill_child(self, chance: random.Random) -> bool:
        """kill -9 a child process; the postmaster then ends all others and recovers. False when there is none."""
        first = self.pid
        children = sorted(pid for pid, one in process_tree((first,)).items() if one.parent == first)
        if not children:
            return False
        pid = chance.choice(children)
        with contextlib.suppress(ProcessLookupError), handle_of(pid) as handle:
            # The pid may have been reused since it was read; the handle pins it now, so check again.
            found = process_time(pid)
            if found is not None and found.parent == first:
                signal.pidfd_send_signal(handle, signal.SIGKILL)
                return True
        return False

    def url(self, database: str) -> str:
        return f"postgresql://{USER}@/{database}?host={quote(str(self.folder))}&port={self.port}"

    def tcp_url(self, database: str) -> str:
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{database}"

    def run(self, sql: str, database: str = "postgres") -> Any:
        """Execute `sql`; the first column of the first row."""
        with ThreadPoolExecutor(1) as apart:  # an event loop may be running in this thread
            return apart.submit(asyncio.run, self._run(sql, database)).result()

    async def _run(self, sql: str, database: str) -> Any:
        connection = await asyncpg.connect(self.url(database))
        try:
            return await connection.fetchval(sql)
        finally:
            await connection.close()

    def make_database(self, template: str = "template1") -> str:
        """Create a database; its name."""
        name = f"t{secrets.token_hex(6)}"  # a kept cluster has those of earlier runs
        self.run(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def drop_database(self, name: str) -> None:
        """Drop it, and terminate open connections."""
        self.run(f"DROP DATABASE {name} WITH (FORCE)")


def hand_over(folder: Path) -> None:
    """Make PostgreSQL's user the owner of `folder`, and its sockets accessible to all users."""
    if user := _as_its_user():
        os.chown(folder, user["user"], user["group"])
    folder.chmod(0o711)


@contextlib.contextmanager
def new_folder(inside: Path | None = None) -> Iterator[Path]:
    """A temporary folder for a cluster, removed at the end."""
    # Short, for a socket's path in it, and open to PostgreSQL's own user, as a run's private folder is not.
    folder = Path(tempfile.mkdtemp(prefix="fleet-pg-", dir=inside))
    try:
        hand_over(folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
