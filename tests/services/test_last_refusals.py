"""The last refusal of each device: in memory until the job writes it, bounded, and of proven devices alone."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fleet.domain.changes import AuditEntry
from fleet.domain.credential import CredentialState
from fleet.domain.device import Device, DeviceState
from fleet.domain.device_refusal import DeviceRefusal
from fleet.domain.errors import FleetError, Unavailable
from fleet.domain.peer import Peer
from fleet.domain.writes import AddCredential, Insert
from fleet.services import last_refusals
from fleet.services.admission import admit
from fleet.services.last_refusals import LastRefusals
from fleet.services.refusal_rows import write_due
from fleet.storage.sqlite.registry import SqliteRegistry
from tests.services.test_admission import CAM, MODEL, NOW, certificate, shows, write


class Counting(SqliteRegistry):
    """Counts the writes of refusals, which fail while `is_away`."""

    is_away = False
    written: list[int]

    async def keep_refusals(self, refusals: Sequence[DeviceRefusal]) -> None:
        if self.is_away:
            raise Unavailable("away", "The registry is away.")
        self.written.append(len(refusals))
        await super().keep_refusals(refusals)


async def test_a_device_that_is_refused_again_and_again_costs_one_write_in_a_while(tmp_path: Path) -> None:
    registry = await Counting.open(tmp_path / "registry.db")
    registry.written = []
    held = certificate(state=CredentialState.REVOKED)
    await write(registry, Insert(MODEL), Insert(Device(CAM, MODEL.name, DeviceState.ACTIVE, NOW)), AddCredential(held))
    for second in range(100):
        for peer in (shows(held), Peer("192.0.2.1", None, (), None)):  # the other claims its client id
            with pytest.raises(FleetError):
                await admit(registry, peer, CAM, NOW + timedelta(seconds=second))
    assert registry.written == []
    registry.is_away = True
    await write_due(registry, NOW)
    assert await registry.refusal_of(CAM) is None
    registry.is_away = False
    await write_due(registry, NOW)
    await write_due(registry, NOW)
    assert registry.written == [1]
    last = NOW + timedelta(seconds=99)
    assert await registry.refusal_of(CAM) == DeviceRefusal(
        CAM, last, "mqtt.connect", "certificate-revoked", "192.0.2.9"
    )
    await registry.close()


def test_only_so_many_devices_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(last_refusals, "DEVICES_MAX", 2)
    refusals = LastRefusals()
    for actor, subject in (
        ("device a", "?"),
        ("token t", "device b"),
        ("device a", "?"),
        ("station s", "x"),
        ("device c", "?"),
    ):
        refusals.note(AuditEntry(datetime.now(UTC), actor, "enroll", subject, "refused"))
    assert sorted(refusals._waiting) == ["b", "c"]
