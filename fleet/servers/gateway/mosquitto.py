"""Our own mosquitto: a generated configuration in a private directory, a Unix socket as the only door.

It takes the user name's word for who connects, because only the gateway, and an operator of this machine, can open
the socket. Its access list repeats each model's filters with %u for the device: a second wall, should the first fail.
The user `_backend`, which no device can be called, may read and write everything:

    mosquitto_sub --unix HOME/run/broker.sock -u _backend -t '#'
"""

import asyncio
import logging
import os
import pwd
import shutil
import signal
from collections.abc import Iterable, Sequence
from pathlib import Path

from fleet.domain.device import Model
from fleet.servers.gateway.broker_process import BrokerProcess
from fleet.servers.gateway.private_socket import connect_unix, private_directory
from fleet.servers.gateway.upstream import CONNECT_SECONDS_MAX, Factory
from fleet.wire.mqtt.reader import PACKET_SIZE_MAX

log = logging.getLogger("fleet.broker")

BACKEND = "_backend"  # a device id starts with a letter or a digit
SOCKET = "broker.sock"
CONFIG = "mosquitto.conf"
ACCESS = "mosquitto.acl"
RELOAD_SECONDS_MAX = 1.0  # it takes milliseconds; while we wait, live sessions are judged by the old model

MEMORY_MAX = 268_435_456  # all that it holds; on SIGTERM it is written to disk in half the time that it gets for that

CONFIG_TEXT = f"""\
# Written by `fleet serve` at each start. Paths are relative to this directory.
{{user}}listener 0 {SOCKET}
allow_anonymous true
acl_file {ACCESS}
max_packet_size {PACKET_SIZE_MAX}
# A device that is away for long finds its messages: the bounds are by number and by bytes, for each client.
max_inflight_messages 100
max_queued_messages 100000
max_queued_bytes 16777216
# The last line of defence: beyond it a client is disconnected rather than this machine out of memory.
memory_limit {MEMORY_MAX}
persistence true
persistence_location ./
persistence_file mosquitto.db
autosave_interval 60
set_tcp_nodelay true
connection_messages false
log_dest stderr
log_type error
log_type warning
log_type notice
log_type information
"""


def mosquitto_program() -> str | None:
    """Where it is installed, or None. Debian keeps it in /usr/sbin, which is not on everybody's PATH."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"))
    return shutil.which("mosquitto", path=path)


class Mosquitto:
    """An Upstream."""

    speaks_v5 = True

    def __init__(self, program: str, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._reloaded = asyncio.Event()
        self._access = ""
        self.socket = run_dir / SOCKET
        self.child = BrokerProcess("mosquitto", (program, "-c", CONFIG), run_dir, self.socket, self._heard)

    @classmethod
    async def start(cls, program: str, run_dir: Path, models: Sequence[Model]) -> "Mosquitto":
        """Returns when it takes connections. Raises: OSError, TimeoutError."""
        broker = cls(program, private_directory(run_dir))
        if os.geteuid() == 0:
            log.warning("event=broker.root note='mosquitto runs as root: give fleet serve an account of its own'")
        broker._write(CONFIG, config_text())
        broker._access = access_text(models)
        broker._write(ACCESS, broker._access)
        await broker.child.start()
        return broker

    async def connect(self, factory: Factory) -> None:
        async with asyncio.timeout(CONNECT_SECONDS_MAX):
            await connect_unix(self.socket, factory)

    async def set_models(self, models: Sequence[Model]) -> None:
        """Returns when the access list is in force. Raises: OSError, TimeoutError."""
        access = access_text(models)
        if access == self._access:
            return
        self._write(ACCESS, access)
        self._reloaded.clear()
        self.child.signal(signal.SIGHUP)
        async with asyncio.timeout(RELOAD_SECONDS_MAX):
            await self._reloaded.wait()
        self._access = access

    def describe(self) -> str:
        return f"mosquitto on unix:{self.socket} (mosquitto_sub --unix {self.socket} -u {BACKEND} -t '#')"

    async def close(self) -> None:
        await self.child.close()

    def _heard(self, line: str) -> None:
        # It says so before it does so; but what it is sent after that, it reads after that.
        if "Reloading config" in line:
            self._reloaded.set()

    def _write(self, name: str, text: str) -> None:
        """Whole or not at all: mosquitto may read it at any time."""
        fresh = self._run_dir / f"{name}.new"
        fresh.unlink(missing_ok=True)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        fresh.replace(self._run_dir / name)


def config_text() -> str:
    """mosquitto.conf. Started by root it would become the user mosquitto, who can't enter our directory."""
    user = f"user {pwd.getpwuid(0).pw_name}\n" if os.geteuid() == 0 else ""
    return CONFIG_TEXT.format(user=user)


def access_text(models: Iterable[Model]) -> str:
    """mosquitto.acl: what each model may, for whichever device connects, and everything for the backend."""
    lines = {
        f"pattern {right} {_pattern(text, model)}"
        for model in models
        for right, filters in (("write", model.publish), ("read", model.subscribe))
        for text in filters
    }
    backend = (f"user {BACKEND}", "topic readwrite #", "topic read $SYS/#", "")
    return "\n".join((*backend, *sorted(lines), ""))


def _pattern(text: str, model: Model) -> str:
    """`text` in mosquitto's words. A level that means another thing to it becomes +: wider, never narrower."""
    levels = (
        "+" if "%" in level else level.replace("{id}", "%u").replace("{model}", model.name) for level in text.split("/")
    )
    return "/".join(levels)
