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
from fleet.domain.changes import AuditEntry, Change, Event, Notice
from fleet.domain.presence import ClientSession, SessionNotice, encode_notices
from fleet.domain.writes import DropEvents
from fleet.servers.admin.handlers.events import STREAMS_MAX
from fleet.servers.http_connection import HttpLimits
from fleet.services import revocation
from tests.servers.admin_fixtures import AdminHarness, open_admin
from tests.servers.est_fixtures import DEADLINE_SECONDS, Answer, Identity


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[AdminHarness]:
    async with open_admin(tmp_path, heartbeat_seconds=0.05) as api:
        yield api


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
        fields = await self.raw_block()
        if fields is not None:
            self.last_id = int(fields["id"])
        return fields

    async def raw_block(self) -> dict[str, str] | None:
        """The same, of one that may have no id."""
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
    api: AdminHarness, identity: Identity, query: str = "", headers: dict[str, str] | None = None
) -> Reader:
    reader, writer = await api.est.connect(identity, "admin")
    lines = [f"GET /v1/events{query} HTTP/1.1", "Host: localhost", *(f"{k}: {v}" for k, v in (headers or {}).items())]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    async with asyncio.timeout(DEADLINE_SECONDS):
        head = Answer(await reader.readuntil(b"\r\n\r\n"))
        if head.status != 200:
            head = Answer(head.raw + await reader.readexactly(int(head.header("Content-Length") or 0)))
    return Reader(reader, writer, head)


async def suspend(api: AdminHarness, device: str = "cam-2") -> None:
    await revocation.suspend(api.est.registry, device, act=Act("test", api.est.clock()))


async def resume(api: AdminHarness, device: str = "cam-2") -> None:
    await revocation.resume(api.est.registry, device, act=Act("test", api.est.clock()))


async def test_live_from_now_on(api: AdminHarness) -> None:
    bob = await api.est.operator("bob")
    stream = await follow(api, bob)
    assert stream.head.header("Content-Type") == "text/event-stream"
    await stream.block()
    assert stream.last_id == await api.est.registry.last_event()
    await suspend(api)
    event = await stream.event()
    assert event is not None
    assert {k: v for k, v in event.items() if k != "seq"} == {
        "kind": "device.state",
        "subject": "cam-2",
        "detail": "suspended",
    }
    stream.writer.close()


async def test_resumed_without_a_gap(api: AdminHarness) -> None:
    bob = await api.est.operator("bob")
    known = await api.est.registry.events()
    stream = await follow(api, bob, "?after=0")
    seen = [await stream.event() for _ in known[:3]]
    stream.writer.close()
    await suspend(api)
    again = await follow(api, bob, "?after=0", {"Last-Event-ID": str(stream.last_id)})
    seen += [await again.event() for _ in known[3:]]
    newest = await again.event()
    again.writer.close()
    assert [event["seq"] for event in seen if event] == [event.seq for event in known]
    assert newest is not None
    assert newest["detail"] == "suspended"


async def test_a_heartbeat_moves_the_reader_on(api: AdminHarness) -> None:
    """What the reader may not see must not make it come back to a place that is not kept any more."""
    held = await api.est.operator("held", Role.VIEWER, ("cam",))
    stream = await follow(api, held)
    await stream.block()
    await suspend(api, "pump-1")
    newest = await api.est.registry.last_event()
    while stream.last_id < newest:
        fields = await stream.block()
        assert fields is not None
        assert "data" not in fields
    assert stream.heartbeats >= 2
    stream.writer.close()


async def test_held_to_a_model_hears_of_it_alone(api: AdminHarness) -> None:
    held = await api.est.operator("held", Role.VIEWER, ("pump",))
    admin = await api.operator("admin")
    stream = await follow(api, held, f"?after={await api.est.registry.last_event()}")
    await suspend(api, "cam-2")
    for model in ("cam", "pump"):
        assert (await admin.ask("PATCH", f"/v1/models/{model}", {"retain": True}, {"If-Match": "*"}))[0] == 200
    await api.est.enrolled("cam-9")
    await suspend(api, "pump-1")
    await api.est.device("pump-2", "pump")
    seen = [await stream.event() for _ in range(3)]
    stream.writer.close()
    assert [(e["kind"], e["subject"], e["detail"]) for e in seen if e] == [
        ("model.changed", "pump", ""),
        ("device.state", "pump-1", "suspended"),
        ("device.state", "pump-2", "registered"),
    ]


async def test_a_gap_is_told(api: AdminHarness) -> None:
    bob = await api.est.operator("bob")
    last = await api.est.registry.last_event()
    entry = AuditEntry(api.est.clock(), "test", "test", "test", "ok")
    await api.est.registry.commit(Change(entry, (DropEvents(3),)))
    for query, headers in (("?after=2", {}), (f"?after={last + 1}", {}), ("", {"Last-Event-ID": "0"})):
        refused = await follow(api, bob, query, headers)
        assert refused.head.status == 410
        assert json.loads(refused.head.body)["code"] == "feed-gap"
        refused.writer.close()
    stream = await follow(api, bob, "?after=3")
    event = await stream.event()
    assert event is not None
    assert event["seq"] == 4
    stream.writer.close()
    bad = await follow(api, bob, "", {"Last-Event-ID": "soon"})
    assert bad.head.status == 400
    bad.writer.close()


async def test_it_ends_when_the_operator_is_revoked(api: AdminHarness) -> None:
    bob, alice = await api.est.operator("bob"), await api.est.operator("alice")
    stream, other = await follow(api, bob), await follow(api, alice)
    await stream.block()
    await other.block()
    await api.revoke("bob")
    while await stream.block() is not None:
        pass
    ended = await other.event()
    assert ended is not None
    assert (ended["kind"], ended["subject"]) == ("credential.ended", "bob")
    stream.writer.close()
    other.writer.close()


async def test_it_ends_with_the_certificate(api: AdminHarness) -> None:
    brief = await api.est.operator("brief", lifetime=timedelta(minutes=2))
    stream = await follow(api, brief)
    await stream.block()
    api.est.now = api.est.clock() + timedelta(minutes=3)
    while await stream.block() is not None:
        pass
    stream.writer.close()


async def test_it_ends_at_shutdown(api: AdminHarness) -> None:
    stream = await follow(api, await api.est.operator("bob"))
    await stream.block()
    server = api.est.servers["admin"]
    async with asyncio.timeout(DEADLINE_SECONDS):
        await server.shutdown(DEADLINE_SECONDS)
    while await stream.block() is not None:
        pass
    stream.writer.close()


async def test_one_operator_has_so_many_and_no_more(tmp_path: Path) -> None:
    async with open_admin(tmp_path, heartbeat_seconds=3600) as api:
        bob, alice = await api.est.operator("bob"), await api.est.operator("alice")
        streams = [await follow(api, bob) for _ in range(STREAMS_MAX)]
        refused = await follow(api, bob)
        assert (refused.head.status, refused.head.header("Retry-After")) == (429, "15")
        streams += [refused, await follow(api, alice)]
        assert streams[-1].head.status == 200
        for stream in streams:
            stream.writer.close()
        async with asyncio.timeout(DEADLINE_SECONDS):
            while (again := await follow(api, bob)).head.status == 429:  # until the server has noticed
                again.writer.close()
        again.writer.close()


async def test_who_does_not_read_is_put_out(tmp_path: Path) -> None:
    """Nothing is kept for it beyond what the sockets hold, and the connection is closed."""
    limits = HttpLimits(write_seconds_max=0.2)
    async with open_admin(tmp_path, limits=limits) as api:
        identity = await api.est.operator("bob")
        flood = tuple(Event("test", f"subject {n}", "x" * 1000) for n in range(20_000))
        await api.est.registry.commit(Change(AuditEntry(api.est.clock(), "test", "test", "test", "ok"), events=flood))
        stream = await follow(api, identity, "?after=0")
        stream.writer.transport.pause_reading()  # type: ignore[attr-defined]
        async with asyncio.timeout(DEADLINE_SECONDS):
            await api.est.servers["admin"]._quiet.wait()
        stream.writer.transport.resume_reading()  # type: ignore[attr-defined]
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while await stream.block() is not None:
                pass
        assert stream.last_id < len(flood)
        stream.writer.close()


async def test_sessions_of_one_event_are_an_event_each_and_the_last_has_the_id(api: AdminHarness) -> None:
    registry, start = api.est.registry, await api.est.registry.last_event()
    now = api.est.clock()
    more = ("192.0.2.7", "host:/home", "aa", "5.0", "TLSv1.3", "X25519")
    sessions = [ClientSession(name, name, now, now, None, "", *more) for name in ("cam-1", "pump-1", "cam-2")]
    gone = ClientSession("cam-1", "cam-1/app", now, now, now, "client-gone", *more)
    await registry.tell(Notice((encode_notices("aa", [SessionNotice.of(each) for each in (*sessions, gone)]),)))
    everything, held = await api.est.operator("bob"), await api.est.operator("held", Role.VIEWER, ("pump",))
    since = now.isoformat().replace("+00:00", "Z")
    for who, names in ((everything, ["cam-1", "pump-1", "cam-2", "cam-1/app"]), (held, ["pump-1"])):
        stream = await follow(api, who, f"?after={start}")
        await stream.block()
        for name in names:
            head = await stream.raw_block()
            assert head is not None
            assert ("id" in head) == (name == names[-1])
            value = json.loads(head["data"])
            kind = "device.disconnected" if name == "cam-1/app" else "device.connected"
            assert (head["event"], value["kind"], value["subject"]) == (kind, kind, name.partition("/")[0])
            detail = {"client_id": name, "connected_at": since, "address": "192.0.2.7"}
            assert json.loads(value["detail"]) == detail | (
                {"reason": "client-gone"} if kind == "device.disconnected" else {}
            )
        stream.writer.close()
