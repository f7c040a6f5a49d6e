"""The feed as Server-Sent Events: in order, resumable, and at an end when it must be."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from fleet.domain.access import Act, Role
from fleet.domain.changes import AuditEntry, Change, DropEvents, Event
from fleet.servers.admin.events import STREAMS_MAX
from fleet.servers.http import HttpLimits
from fleet.services import revocation
from tests.servers.admin_house import AdminHouse, open_admin_house
from tests.servers.est_house import DEADLINE_SECONDS, Answer, Identity


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[AdminHouse]:
    async with open_admin_house(tmp_path, heartbeat_seconds=0.05) as house:
        yield house


@dataclass
class Reader:
    """An SSE client: reads blocks, and remembers the last id."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    head: Answer
    last_id: int = -1
    heartbeats: int = 0
    _text: str = ""
    _ended: bool = field(default=False)

    async def block(self) -> dict[str, str] | None:
        """The fields of the next block; None at the end of the stream."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            while "\n\n" not in self._text:
                size = int((await self.reader.readline()).strip() or b"0", 16)
                if not size:
                    return None
                self._text += (await self.reader.readexactly(size)).decode()
                await self.reader.readexactly(2)
        block, _, self._text = self._text.partition("\n\n")
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        self.heartbeats += block.startswith(":")
        self.last_id = int(fields["id"])
        return fields

    async def event(self) -> dict[str, Any] | None:
        """The next event; None at the end."""
        while (fields := await self.block()) is not None:
            if "data" in fields:
                value: dict[str, Any] = json.loads(fields["data"])
                assert (value["seq"], value["kind"]) == (int(fields["id"]), fields["event"])
                return value
        return None


async def follow(
    house: AdminHouse, identity: Identity, query: str = "", headers: dict[str, str] | None = None
) -> Reader:
    reader, writer = await house.house.connect(identity, "admin")
    lines = [f"GET /v1/events{query} HTTP/1.1", "Host: localhost", *(f"{k}: {v}" for k, v in (headers or {}).items())]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    async with asyncio.timeout(DEADLINE_SECONDS):
        head = Answer(await reader.readuntil(b"\r\n\r\n"))
        if head.status != 200:
            head = Answer(head.raw + await reader.readexactly(int(head.header("Content-Length") or 0)))
    return Reader(reader, writer, head)


async def suspend(house: AdminHouse, device: str = "cam-2") -> None:
    await revocation.suspend(house.house.registry, device, act=Act("test", house.house.clock()))


async def resume(house: AdminHouse, device: str = "cam-2") -> None:
    await revocation.resume(house.house.registry, device, act=Act("test", house.house.clock()))


async def test_live_from_now_on(house: AdminHouse) -> None:
    bob = await house.house.operator("bob")
    stream = await follow(house, bob)
    assert stream.head.header("Content-Type") == "text/event-stream"
    await stream.block()
    assert stream.last_id == await house.house.registry.last_event()
    await suspend(house)
    event = await stream.event()
    assert event is not None
    assert {k: v for k, v in event.items() if k != "seq"} == {
        "kind": "device.state",
        "subject": "cam-2",
        "detail": "suspended",
    }
    stream.writer.close()


async def test_resumed_without_a_gap(house: AdminHouse) -> None:
    bob = await house.house.operator("bob")
    known = await house.house.registry.events()
    stream = await follow(house, bob, "?after=0")
    seen = [await stream.event() for _ in known[:3]]
    stream.writer.close()
    await suspend(house)
    again = await follow(house, bob, "?after=0", {"Last-Event-ID": str(stream.last_id)})
    seen += [await again.event() for _ in known[3:]]
    newest = await again.event()
    again.writer.close()
    assert [event["seq"] for event in seen if event] == [event.seq for event in known]
    assert newest is not None
    assert newest["detail"] == "suspended"


async def test_a_heartbeat_moves_the_reader_on(house: AdminHouse) -> None:
    """What the reader may not see must not make it come back to a place that is not kept any more."""
    held = await house.house.operator("held", Role.VIEWER, ("cam",))
    stream = await follow(house, held)
    await stream.block()
    await suspend(house, "pump-1")
    newest = await house.house.registry.last_event()
    while stream.last_id < newest:
        fields = await stream.block()
        assert fields is not None
        assert "data" not in fields
    assert stream.heartbeats >= 2
    stream.writer.close()


async def test_held_to_a_model_hears_of_it_alone(house: AdminHouse) -> None:
    held = await house.house.operator("held", Role.VIEWER, ("pump",))
    admin = await house.operator("admin")
    stream = await follow(house, held, f"?after={await house.house.registry.last_event()}")
    await suspend(house, "cam-2")
    for model in ("cam", "pump"):
        assert (await admin.ask("PATCH", f"/v1/models/{model}", {"retain": True}, {"If-Match": "*"}))[0] == 200
    await house.house.enrolled("cam-9")
    await suspend(house, "pump-1")
    await house.house.device("pump-2", "pump")
    seen = [await stream.event() for _ in range(3)]
    stream.writer.close()
    assert [(e["kind"], e["subject"], e["detail"]) for e in seen if e] == [
        ("model.changed", "pump", ""),
        ("device.state", "pump-1", "suspended"),
        ("device.state", "pump-2", "registered"),
    ]


async def test_a_gap_is_told(house: AdminHouse) -> None:
    bob = await house.house.operator("bob")
    last = await house.house.registry.last_event()
    entry = AuditEntry(house.house.clock(), "test", "test", "test", "ok")
    await house.house.registry.commit(Change(entry, (DropEvents(3),)))
    for query, headers in (("?after=2", {}), (f"?after={last + 1}", {}), ("", {"Last-Event-ID": "0"})):
        refused = await follow(house, bob, query, headers)
        assert refused.head.status == 410
        assert json.loads(refused.head.body)["code"] == "feed-gap"
        refused.writer.close()
    stream = await follow(house, bob, "?after=3")
    event = await stream.event()
    assert event is not None
    assert event["seq"] == 4
    stream.writer.close()
    bad = await follow(house, bob, "", {"Last-Event-ID": "soon"})
    assert bad.head.status == 400
    bad.writer.close()


async def test_it_ends_when_the_operator_is_revoked(house: AdminHouse) -> None:
    bob, alice = await house.house.operator("bob"), await house.house.operator("alice")
    stream, other = await follow(house, bob), await follow(house, alice)
    await stream.block()
    await other.block()
    await house.revoke("bob")
    while await stream.block() is not None:
        pass
    ended = await other.event()
    assert ended is not None
    assert (ended["kind"], ended["subject"]) == ("credential.ended", "bob")
    stream.writer.close()
    other.writer.close()


async def test_it_ends_with_the_certificate(house: AdminHouse) -> None:
    brief = await house.house.operator("brief", lifetime=timedelta(minutes=2))
    stream = await follow(house, brief)
    await stream.block()
    house.house.now = house.house.clock() + timedelta(minutes=3)
    while await stream.block() is not None:
        pass
    stream.writer.close()


async def test_it_ends_at_shutdown(house: AdminHouse) -> None:
    stream = await follow(house, await house.house.operator("bob"))
    await stream.block()
    server = house.house.servers["admin"]
    async with asyncio.timeout(DEADLINE_SECONDS):
        await server.shutdown(DEADLINE_SECONDS)
    while await stream.block() is not None:
        pass
    stream.writer.close()


async def test_one_operator_has_so_many_and_no_more(house: AdminHouse) -> None:
    bob, alice = await house.house.operator("bob"), await house.house.operator("alice")
    streams = [await follow(house, bob) for _ in range(STREAMS_MAX)]
    refused = await follow(house, bob)
    assert (refused.head.status, refused.head.header("Retry-After")) == (429, "15")
    streams += [refused, await follow(house, alice)]
    assert streams[-1].head.status == 200
    for stream in streams:
        stream.writer.close()
    async with asyncio.timeout(DEADLINE_SECONDS):
        while (again := await follow(house, bob)).head.status == 429:  # until a heartbeat has met the closed door
            again.writer.close()
    again.writer.close()


async def test_who_does_not_read_is_put_out(tmp_path: Path) -> None:
    """Nothing is kept for it beyond what the sockets hold, and the connection is closed."""
    limits = HttpLimits(write_seconds_max=0.2)
    async with open_admin_house(tmp_path, limits=limits) as house:
        identity = await house.house.operator("bob")
        flood = tuple(Event("test", f"subject {n}", "x" * 1000) for n in range(20_000))
        await house.house.registry.commit(
            Change(AuditEntry(house.house.clock(), "test", "test", "test", "ok"), events=flood)
        )
        stream = await follow(house, identity, "?after=0")
        stream.writer.transport.pause_reading()  # type: ignore[attr-defined]
        async with asyncio.timeout(DEADLINE_SECONDS):
            await house.house.servers["admin"]._quiet.wait()
        stream.writer.transport.resume_reading()  # type: ignore[attr-defined]
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while await stream.block() is not None:
                pass
        assert stream.last_id < len(flood)
        stream.writer.close()
