"""mosquitto as our private broker: generated configuration in a private directory, reachable only by a Unix socket.

It trusts the user name, because only the gateway, and an operator of this machine, can open the socket. Its ACL
repeats each model's filters with %u for the device, as a second line of defense. The user `_backend`, which cannot be
a device id, may read and write everything:

    mosquitto_sub --unix HOME/run/broker.sock -u _backend -t '#'
"""

import asyncio
import logging
import os
import pwd
import shlex
import shutil
import signal
from collections.abc import Iterable, Sequence
from pathlib import Path

from fleet.config.logs import log_event
from fleet.domain.device import Model
from fleet.servers.gateway.broker_process import BrokerProcess, OwnBroker
from fleet.servers.gateway.private_socket import private_directory
from fleet.wire.mqtt.reader import PACKET_SIZE_MAX

log = logging.getLogger("fleet.broker")

BACKEND = "_backend"  # a device id starts with a letter or a digit
SOCKET = "broker.sock"
CONFIG = "mosquitto.conf"
ACL = "mosquitto.acl"
RELOAD_SECONDS_MAX = 1.0  # it takes milliseconds; meanwhile live sessions keep the old policy

MEMORY_MAX = 268_435_456  # what it holds is written to disk on SIGTERM, in half of STOP_SECONDS_MAX

CONFIG_TEXT = f"""\
# Written by `fleet serve` at each start. Paths are relative to this directory.
{{user}}listener 0 {SOCKET}
allow_anonymous true
acl_file {ACL}
max_packet_size {PACKET_SIZE_MAX}
# Messages queue for an offline device: limited by number and by bytes, for each client.
max_inflight_messages 100
max_queued_messages 100000
max_queued_bytes 16777216
# The last line of defense: beyond it clients are disconnected, before this machine runs out of memory.
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
    """Path of the program, or None. Debian installs it in /usr/sbin, which is not on every user's PATH."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"))
    return shutil.which("mosquitto", path=path)


class Mosquitto(OwnBroker):
    def __init__(self, program: str, run_dir: Path) -> None:
        super().__init__(run_dir / SOCKET)
        self._run_dir = run_dir
        self._reloaded = asyncio.Event()
        self._acl = ""
        self.process = BrokerProcess("mosquitto", (program, "-c", CONFIG), run_dir, self.socket, self._on_line)

    @classmethod
    async def start(cls, program: str, run_dir: Path, models: Sequence[Model]) -> "Mosquitto":
        """Returns when it accepts connections. Raises: OSError, TimeoutError."""
        broker = cls(program, private_directory(run_dir))
        if os.geteuid() == 0:
            note = "mosquitto runs as root: run fleet serve as a user of its own"
            log_event(log, logging.WARNING, "broker.root", note=note)
        broker._write(CONFIG, config_text())
        broker._acl = acl_text(models)
        broker._write(ACL, broker._acl)
        await broker.process.start()
        return broker

    async def set_models(self, models: Sequence[Model]) -> None:
        """Returns when the ACL is in effect. Raises: OSError, TimeoutError."""
        acl = acl_text(models)
        if acl == self._acl:
            return
        self._write(ACL, acl)
        self._reloaded.clear()
        self.process.signal(signal.SIGHUP)
        async with asyncio.timeout(RELOAD_SECONDS_MAX):
            await self._reloaded.wait()
        self._acl = acl

    def describe(self) -> str:
        command = f"mosquitto_sub --unix {shlex.quote(str(self.socket))} -u {BACKEND} -t '#'"
        return f"mosquitto on unix:{self.socket} ({command})"

    def _on_line(self, line: str) -> None:
        # Logged before it reloads; but packets sent from then on are processed after that.
        if "Reloading config" in line:
            self._reloaded.set()

    def _write(self, name: str, text: str) -> None:
        """Atomically: mosquitto may read the file at any time."""
        fresh = self._run_dir / f"{name}.new"
        fresh.unlink(missing_ok=True)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        fresh.replace(self._run_dir / name)


def config_text() -> str:
    """mosquitto.conf. As root it would drop to the user mosquitto, who can't enter our directory."""
    user = f"user {pwd.getpwuid(0).pw_name}\n" if os.geteuid() == 0 else ""
    return CONFIG_TEXT.format(user=user)


def acl_text(models: Iterable[Model]) -> str:
    """mosquitto.acl: each model's filters, for any device, and everything for the backend."""
    lines = {
        f"pattern {permission} {_pattern(text, model)}"
        for model in models
        for permission, filters in (("write", model.publish), ("read", model.subscribe))
        for text in filters
    }
    backend = (f"user {BACKEND}", "topic readwrite #", "topic read $SYS/#", "")
    return "\n".join((*backend, *sorted(lines), ""))


def _pattern(text: str, model: Model) -> str:
    """`text` in mosquitto's syntax. A level with another meaning there becomes +: wider, never narrower."""
    levels = (
        "+" if "%" in level else level.replace("{id}", "%u").replace("{model}", model.name) for level in text.split("/")
    )
    return "/".join(levels)
