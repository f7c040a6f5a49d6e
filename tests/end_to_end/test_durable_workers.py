"""`durable = true` with two workers: what either has acknowledged outlives kill -9 of the broker that both share."""

import asyncio
import contextlib
import os
import re
import signal
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fleet.servers.gateway.broker.mosquitto import BACKEND, mosquitto_program
from fleet.wire.mqtt.codes import V311
from hw_bench.cpu_time import process_tree
from tests.end_to_end.workers_fixtures import TRIES_MAX, TWO, Devices, Identity
from tests.servers.paho_client import Paho
from tests.serving import Served
from tests.tiers import Tier
from tests.waiting import until

MESSAGES = 300  # of each publisher before each kill: the broker keeps 2,000 for a client that is offline
ACKNOWLEDGED_MIN = 100  # and less than all: others are under way


@dataclass
class Publisher:
    """A device that does not wait for one acknowledgement before it sends the next message."""

    identity: Identity
    client: Paho
    worker: str
    sent: dict[int, bytes] = field(default_factory=dict)
    acknowledged: set[int] = field(default_factory=set)

    def start(self, turn: int) -> None:
        self.client.client.on_publish = lambda c, u, mid, reason, p: self.acknowledged.add(mid)
        for number in range(MESSAGES):
            payload = f"{self.identity.name} {turn} {number}".encode()
            self.sent[self.client.client.publish(self.topic, payload, 1).mid] = payload

    async def has_acknowledgements(self) -> None:
        await until(lambda: len(self.acknowledged) >= ACKNOWLEDGED_MIN)

    @property
    def topic(self) -> str:
        return f"devices/{self.identity.name}/up/t"

    def kept(self) -> set[bytes]:
        """What must not be lost."""
        return {self.sent[mid] for mid in self.acknowledged}


async def publishers(devices: Devices, identities: list[Identity]) -> list[Publisher]:
    """One at each worker."""
    first, second = identities
    found = [Publisher(first, *await devices.connect(first, V311))]
    for _ in range(TRIES_MAX):
        other = Publisher(second, *await devices.connect(second, V311))
        if other.worker != found[0].worker:
            return [*found, other]
    raise AssertionError("One worker got every connection.")


async def application(served: Served) -> Paho:
    """Its session is persistent."""
    client = Paho("application", V311, clean=False, transport="unix")
    client.client.username_pw_set(BACKEND)
    assert await client.connect_unix(served.home / "run" / "broker.sock") == 0
    return client


async def restarted(served: Served, times: int) -> None:
    await until(lambda: served.log.count("event=broker.restarted") >= times)


def broker_pid(served: Served) -> int:
    tree = process_tree((served.process.pid,))
    (pid,) = [pid for pid in tree if Path(f"/proc/{pid}/comm").read_text() == "mosquitto\n"]
    return pid


@pytest.mark.skipif(mosquitto_program() is None, reason="mosquitto is not installed")
@pytest.mark.long
async def test_a_killed_broker_loses_nothing_that_either_worker_acknowledged(
    home: Path, tmp_path: Path, tier: Tier
) -> None:
    settings = home / "fleet.toml"
    text, count = re.subn(r"(?m)^#? ?durable = .*$", "durable = true", settings.read_text())
    assert count == 1
    settings.write_text(text)
    served = Served(home, tmp_path / "ready.json", TWO)
    await asyncio.to_thread(served.start)
    kills = tier.times(1, all=4)
    try:
        async with contextlib.AsyncExitStack() as stack:
            devices = await asyncio.to_thread(Devices, served, tmp_path, stack)
            identities = [await asyncio.to_thread(devices.enroll, name) for name in ("cam-1", "cam-2")]
            listening = await application(served)
            await listening.subscribe("devices/#")
            await listening.close()
            kept = set[bytes]()
            for turn in range(kills):
                at_both = await publishers(devices, identities)
                for each in at_both:
                    await asyncio.to_thread(each.start, turn)
                for each in at_both:
                    await each.has_acknowledgements()
                os.kill(broker_pid(served), signal.SIGKILL)
                for each in at_both:
                    await each.client.got(each.client.disconnected)
                    kept |= each.kept()
                await restarted(served, turn + 1)
            last, _ = await devices.connect(identities[0], V311)
            assert await last.publish("devices/cam-1/up/last") == 0
            listening = await application(served)
            stack.push_async_callback(listening.close)
            received = set[bytes]()
            while (message := await listening.message())[0] != "devices/cam-1/up/last":
                received.add(message[1])
            assert len(kept) >= kills * 2 * ACKNOWLEDGED_MIN
            assert kept - received == set()
    finally:
        await asyncio.to_thread(served.stop)
