"""A spool in a folder, with clocks that are set by hand."""

import io
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from device_agent.config.agent_config import AgentConfig
from device_agent.config.spool import SpoolConfig
from device_agent.link.clock import Reading
from device_agent.log.event_log import EventLog
from device_agent.spool.message_queue import Message
from device_agent.spool.outbox import Outbox
from device_agent.spool.spool import Spool
from device_agent.store.key_store import KeyStore
from fleet.est_client.validity import CLOCK_FLOOR

ENABLED = SpoolConfig(enabled=True)
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
MEBIBYTE = 1024 * 1024


class Time:
    def __init__(self, wall: datetime = BEGIN) -> None:
        self.wall = wall
        self.passed = 0.0

    def clock(self) -> datetime:
        return self.wall

    def read(self) -> Reading:
        return Reading(self.wall, is_set=self.wall >= CLOCK_FLOOR)

    def monotonic(self) -> float:
        return self.passed


class Kept:
    """A spool that is opened; the same folder can be opened again."""

    def __init__(self, home: Path, time: Time | None = None, settings: SpoolConfig = ENABLED) -> None:
        self.home = home
        self.time = time or Time()
        self.log = io.StringIO()
        self.config = AgentConfig(
            home=home,
            key_store=KeyStore(home),
            device_id="cam-7",
            hardware_serial="",
            est_url="https://localhost",
            mqtt_host="localhost",
            mqtt_port=8883,
            ca_file=home / "ca.pem",
            keepalive_seconds=60,
            session_expiry_seconds=60,
            renew_at_fraction=0.5,
            retry_base_seconds=1,
            retry_cap_seconds=1,
            refused_retry_seconds=1,
            outbox_messages_max=100,
            spool=settings,
        )
        self.spool = Spool(self.config, EventLog(self.time.clock, self.log), self.time.read, self.time.monotonic)
        self.spool.open()

    @property
    def outbox(self) -> Outbox:
        return self.spool.outbox

    def put(self, *texts: str) -> list[str]:
        """Accept messages together; what each was answered, "" for stored."""
        answers: list[str] = []
        for text in texts:
            self.outbox.put(Message("t", text.encode()), answers.append)
        self.spool.commit()
        return answers

    def crash(self) -> None:
        """Let go of the file as SIGKILL does: nothing pending is written, and no log is checkpointed."""
        database = self.spool.database
        assert database is not None
        if (connection := database.reader()) is not None:
            connection.execute("PRAGMA wal_autocheckpoint = 0")
            leave_open.append(connection)
            copies = {name: (self.home / name).read_bytes() for name in ("spool.db", "spool.db-wal")}
            for name, data in copies.items():
                (self.home / name).unlink()
                (self.home / name).write_bytes(data)


leave_open: list[object] = []
"""Connections whose files have been replaced: closing one would write to a file without a name."""


def deliver(
    outbox: Outbox, count: int = 10**9, window: int = 10, before_ack: Callable[[], None] = lambda: None
) -> list[str]:
    """Send and acknowledge at most `count` messages; their payloads."""
    sent: list[str] = []
    while len(sent) < count and (message := outbox.next_to_send(window)) is not None:
        outbox.sent(message, len(sent) + 1)
        sent.append(message.payload.decode())
        before_ack()
        outbox.acknowledged(len(sent))
    return sent
