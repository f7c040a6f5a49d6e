"""What a gateway has heard the end of stays out, even when the registry is put back to where it was before."""

import asyncio
from pathlib import Path

import pytest

from fleet.domain.access import Act
from fleet.domain.changes import Change, Event, EventKind
from fleet.domain.ports import HolderFacts
from fleet.domain.revoked_cache import RevokedCache
from fleet.services import revocation
from fleet.services.admission import Admission
from fleet.storage.sqlite.registry import SqliteRegistry
from fleet.wire.mqtt.codes import V5, Reason
from fleet.wire.mqtt.connect import Connect, encode_connect
from tests.servers.gateway_fixtures import credential, now, open_gateway, operator, populate, refused
from tests.waiting import PATIENCE_SECONDS


class PutBack(SqliteRegistry):
    """A registry that answers as it did at an earlier moment: restored, or failed over to a replica that lagged."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.earlier: dict[bytes, HolderFacts | None] = {}

    async def holder_facts(self, fingerprint: bytes) -> HolderFacts | None:
        if fingerprint in self.earlier:
            return self.earlier[fingerprint]
        return await super().holder_facts(fingerprint)


@pytest.mark.parametrize("by", ["device", "certificate"])
async def test_a_registry_that_went_back_lets_nobody_back_in(tmp_path: Path, by: str) -> None:
    registry = await PutBack.open(tmp_path / "registry.db")
    async with open_gateway(tmp_path, registry=registry) as h:
        one, two = await populate(registry, "cam-1", "cam-2")
        live, _ = await h.live(one, V5)
        facts = {c.fingerprint: await registry.holder_facts(c.fingerprint) for c in (one, two)}
        if by == "device":
            await revocation.revoke(registry, "cam-1", act=Act("operator", now()))
        else:
            event = Event(EventKind.CREDENTIAL_ENDED, "cam-1", one.fingerprint.hex())
            await registry.commit(Change(operator("test"), events=(event,)))
        await live.until_closed()
        registry.earlier = facts
        wire = await h.dial(one)
        wire.send(encode_connect(Connect(V5, "cam-1")))
        assert await refused(wire, V5) == Reason.BANNED
        if by == "device":
            await asyncio.wait_for(h.broker.sessions.get(), PATIENCE_SECONDS)  # its session is purged
        await h.live(two, V5)
    await registry.close()


async def test_it_is_bounded(tmp_path: Path) -> None:
    registry = await SqliteRegistry.open(tmp_path / "registry.db")
    held = await populate(registry, "cam-1", "cam-2", "cam-3")
    ended = RevokedCache(entries_max=2)
    admissions = {}
    for one in held:
        facts = await registry.holder_facts(one.fingerprint)
        assert facts is not None
        assert facts.device is not None
        admissions[one.holder] = Admission(facts.device, facts.credential, None)  # type: ignore[arg-type]
    for name in ("cam-1", "cam-2", "cam-3"):
        ended.on_event(Event(EventKind.DEVICE_STATE, name, "retired"))
    assert [ended.refusal_code(admissions[name]) for name in admissions] == ["", "device-revoked", "device-revoked"]
    ended.on_event(Event(EventKind.DEVICE_STATE, "cam-1", "suspended"))  # there is a way back from there
    assert ended.refusal_code(admissions["cam-1"]) == ""
    for fingerprint in (held[0].fingerprint, credential("x").fingerprint):
        ended.on_event(Event(EventKind.CREDENTIAL_ENDED, "cam-1", fingerprint.hex()))
    assert ended.refusal_code(admissions["cam-1"]) == "certificate-revoked"
    await registry.close()
