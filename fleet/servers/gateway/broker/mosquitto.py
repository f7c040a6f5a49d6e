"""mosquitto as our private broker: generated configuration in a private directory, reachable only by a Unix socket.

It trusts user name and client id, because only the gateway, and an operator of this machine, can open the socket. A
device's user name is its model, and its client id the device id. The ACL repeats the models' filters, as a second line
of defense: those with {id} for every device, with its own client id in place of it, and the others for the model's
devices alone. Where a model's client ids are not the device ids alone, {id} is any device of the model there. The user
`_publisher` may write what is the fleet's alone, and `_backend` may read and write everything but what the fleet sends
to devices; neither can be a model:

    mosquitto_sub --unix HOME/run/broker.sock -u _backend -t '#'
"""

import asyncio
import logging
import os
import pwd
import shlex
import shutil
import signal
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from fleet.config.logs import log_event
from fleet.config.mqtt_bounds import BROKER_MEMORY_MAX
from fleet.domain.device import Model
from fleet.domain.mqtt_overrides import all_filters, any_other_client_ids
from fleet.domain.topic_policy import FLEET_TOPICS, RESERVED, filled_for_model
from fleet.mqtt_client.client import MqttVisit
from fleet.servers.gateway.broker.largest_queues import LargestQueues
from fleet.servers.gateway.broker.private_socket import private_directory
from fleet.servers.gateway.broker.process import STOP_SECONDS_MAX, BrokerProcess, OwnBroker
from fleet.servers.gateway.limits.limits import DEFAULT_LIMITS, Limits

RUNS_AS_ROOT = "mosquitto runs as root; run fleet serve as a user of its own"

log = logging.getLogger("fleet.broker")

BACKEND = "_backend"  # a device id starts with a letter or a digit
PUBLISHER = "_publisher"  # what the fleet itself publishes
SOCKET = "broker.sock"
CONFIG = "mosquitto.conf"
ACL = "mosquitto.acl"
DATABASE = "mosquitto.db"
SET_ASIDE_MAX = 3  # unreadable databases that are kept
RELOAD_SECONDS_MAX = 1.0  # it takes milliseconds; meanwhile live sessions keep the old policy

SAVE_SECONDS = 0.8  # with the time that a save takes, a kill loses at most a second
SAVE_SECONDS_DURABLE = 0.1  # devices wait for it
SAVED_BYTES_PER_SECOND = 16 * 1024 * 1024  # it serves no client while it saves: a large database is saved less often

CONFIG_TEXT = f"""\
# Written by `fleet serve` at each start. Paths are relative to this directory.
{{user}}listener 0 {SOCKET}
allow_anonymous true
acl_file {ACL}
max_packet_size {{packet_size_max}}
# Messages queue for a client that is offline, or does not read: limited for each client. Beyond it, the newest of an
# offline client and all of QoS 0 are dropped, and other clients do not notice.
# So is what is sent and not acknowledged: by bytes as well, or a hundred messages of 16 MiB fill the memory.
max_inflight_messages 100
max_inflight_bytes {{unacknowledged_bytes_per_device_max}}
max_queued_messages {{queued_messages_per_device_max}}
max_queued_bytes {{queued_bytes_per_device_max}}
# The last line of defense: beyond it clients are disconnected, before this machine runs out of memory.
memory_limit {BROKER_MEMORY_MAX}
persistence true
persistence_location ./
persistence_file {DATABASE}
# `fleet serve` has it saved every second at least, a database of more than 13 MiB less often.
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
        self._database_is_unreadable = False
        self._save_seconds = SAVE_SECONDS
        self._error = ""  # the last that it has reported
        self.not_saved = ""
        """Why it can't save what it holds, in its own words; "" while it can."""
        self._saving: asyncio.Task[None] | None = None
        self._queues = LargestQueues(run_dir / DATABASE, self._connect)
        self.process = BrokerProcess("mosquitto", (program, "-c", CONFIG), run_dir, self.socket, self._on_line)
        self.process.recover = self._set_database_aside

    @classmethod
    async def start(
        cls,
        program: str,
        run_dir: Path,
        models: Sequence[Model],
        limits: Limits = DEFAULT_LIMITS,
        save_seconds: float = SAVE_SECONDS,
    ) -> "Mosquitto":
        """Returns when it accepts connections. Raises: OSError, TimeoutError.

        `save_seconds`: from one save to the next, while there is traffic.
        """
        broker = cls(program, private_directory(run_dir))
        broker._save_seconds = save_seconds
        if os.geteuid() == 0:
            log_event(log, logging.WARNING, "broker.root", broker=broker.address, reason=RUNS_AS_ROOT)
        broker._write(CONFIG, config_text(limits))
        broker._acl = acl_text(models)
        broker._write(ACL, broker._acl)
        await broker.process.start()
        broker._saving = asyncio.create_task(broker._save_regularly())
        return broker

    async def close(self, seconds_max: float = STOP_SECONDS_MAX) -> None:
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.cancel()
            await asyncio.gather(saving, return_exceptions=True)
        await super().close(seconds_max)

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
        elif "Couldn't open database" in line:
            self._database_is_unreadable = True
        elif "Error: " in line:
            self._error = line.partition("Error: ")[2]

    def _set_database_aside(self) -> bool:
        """Rename a database that could not be loaded, so that it starts without; False when that was not the cause."""
        if not self._database_is_unreadable:
            return False
        self._database_is_unreadable = False
        name = f"{DATABASE}.unreadable-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
        try:
            (self._run_dir / DATABASE).replace(self._run_dir / name)
        except OSError:
            return False
        log_event(log, logging.ERROR, "broker.database-set-aside", broker=self.address, file=self._run_dir / name)
        for older in sorted(self._run_dir.glob(f"{DATABASE}.unreadable-*"))[:-SET_ASIDE_MAX]:
            older.unlink(missing_ok=True)
        return True

    async def _save_regularly(self) -> None:
        """Have it save what it holds: what it has acknowledged since the last time is lost when it is killed."""
        before: tuple[int, int | None] | None = None
        was_read = was_asked = False
        while True:
            database = self._database_state()
            await asyncio.sleep(max(self._save_seconds, database[1] / SAVED_BYTES_PER_SECOND))
            is_saved = not was_asked or self._is_saved(database)
            await self._queues.saved(*self._database_state())
            read = (self.process.restarts, self.process.bytes_read())  # a successor may have read just as much
            is_read = read[1] is None or read != before
            # Once more than it has read: an acknowledgement under way during a save waits for the next (saved_acks.py).
            was_asked = self.process.is_ready and (is_read or was_read or not is_saved)
            if was_asked:
                self._error = ""
                self.process.signal(signal.SIGUSR1)
                before, was_read = read, is_read

    async def _connect(self, visit: MqttVisit) -> None:
        await asyncio.get_running_loop().create_unix_connection(lambda: visit, str(self.socket))

    def _is_saved(self, before: tuple[int, int]) -> bool:
        """Whether it has saved, or reported no error; logs when that changes. `before`: the state when it was asked."""
        if self._database_state() != before:
            self._error = ""
            if self.not_saved:
                log_event(log, logging.WARNING, "broker.saved-again", broker=self.address)
            self.not_saved = ""
        elif self._error and not self.not_saved:
            self.not_saved = self._error
            log_event(log, logging.ERROR, "broker.not-saved", broker=self.address, reason=self._error)
        return not self._error

    def _database_state(self) -> tuple[int, int]:
        """Another after each time that it was saved, and its size in bytes."""
        try:
            found = (self._run_dir / DATABASE).stat()
        except OSError:
            return 0, 0
        return found.st_mtime_ns, found.st_size

    def _write(self, name: str, text: str) -> None:
        """Atomically: mosquitto may read the file at any time."""
        fresh = self._run_dir / f"{name}.new"
        fresh.unlink(missing_ok=True)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        fresh.replace(self._run_dir / name)


def config_text(limits: Limits = DEFAULT_LIMITS) -> str:
    """mosquitto.conf. As root it would drop to the user mosquitto, who can't enter our directory."""
    user = f"user {pwd.getpwuid(0).pw_name}\n" if os.geteuid() == 0 else ""
    return CONFIG_TEXT.format(user=user, **asdict(limits))


def acl_text(models: Iterable[Model]) -> str:
    """mosquitto.acl: each model's filters, what devices receive of the fleet, and nearly everything for the backend."""
    patterns, sections = set[str](), list[str]()
    for model in sorted(models, key=lambda one: one.name):
        own = set[str]()
        publish, subscribe = all_filters(model)
        for permission, filters in (("write", publish), ("read", (*subscribe, FLEET_TOPICS))):
            for template in filters:
                if (text := filled_for_model(template, model)) is None:
                    continue
                if "{id}" in text and not any_other_client_ids(model):
                    patterns.add(f"pattern {permission} {_pattern(text, model)}")
                else:
                    own.add(f"topic {permission} {_pattern(text, model)}")
        if own:
            sections += (f"user {model.name}", *sorted(own), "")
    # A denial is of both, reading and writing.
    backend = (f"user {BACKEND}", "topic readwrite #", "topic read $SYS/#", f"topic deny {RESERVED[0]}", "")
    fleet = (f"user {PUBLISHER}", *(f"topic write {each}" for each in RESERVED), "")
    return "\n".join((*backend, *fleet, *sections, *sorted(patterns), ""))


def _pattern(text: str, model: Model) -> str:
    """`text` in mosquitto's syntax. A level with another meaning there becomes +: wider, never narrower.

    So does one with a tag, and one with {id} where the client id is more than that: mosquitto knows no part of it.
    """
    unknown = ("%", "{tag:", "{id}") if any_other_client_ids(model) else ("%", "{tag:")
    levels = (
        "+" if any(each in level for each in unknown) else level.replace("{id}", "%c") for level in text.split("/")
    )
    return "/".join(levels)
