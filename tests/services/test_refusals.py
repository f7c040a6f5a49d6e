from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

import pytest
from msgspec.structs import replace

from fleet.domain.changes import AuditEntry, Change
from fleet.domain.credential import Credential, CredentialKind, CredentialState
from fleet.domain.errors import Refused, Unavailable
from fleet.domain.peer import Peer
from fleet.domain.writes import AddCredential
from fleet.services.refusals import Refusals, audit_refusal, refusals_of
from fleet.storage.sqlite.registry import SqliteRegistry

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[SqliteRegistry]:
    opened = await SqliteRegistry.open(tmp_path / "registry.db")
    yield opened
    await opened.close()


def refused(
    address: str = "192.0.2.1", code: str = "bad-token", actor: str = "nobody", seconds: float = 0
) -> AuditEntry:
    return AuditEntry(NOW + timedelta(seconds=seconds), actor, "device.enroll", "device ?", code, address)


def test_one_row_a_minute_with_the_number_left_out() -> None:
    refusals = Refusals()
    assert refusals.row(refused()) == refused()
    assert [refusals.row(refused(seconds=s)) for s in (0, 1, 59.9)] == [None] * 3
    row = refusals.row(refused(seconds=60))
    assert row is not None
    assert row.detail == {"left_out": "3"}
    assert refusals.row(refused(seconds=61)) is None
    again = refusals.row(refused(seconds=200))
    assert again is not None
    assert again.detail == {"left_out": "1"}


def test_what_makes_another_kind() -> None:
    refusals = Refusals()
    others = (
        refused(),
        refused("192.0.2.2"),
        refused(code="certificate-unknown"),
        refused(actor="device cam-7"),
        refused(actor="device cam-8"),
        refused("2001:db8::1"),
        refused("2001:db8:0:1::1"),
        refused(""),
    )
    assert [refusals.row(other) for other in others] == list(others)
    same = (refused("::ffff:192.0.2.1"), refused("192.0.2.9", actor="device cam-7"), refused("2001:db8::2:1"))
    assert [refusals.row(entry) for entry in same] == [None] * 3


def test_a_proven_subject_hides_no_other_and_takes_bounded_room() -> None:
    refusals = Refusals(kinds_max=8)
    a, b = (replace(refused(""), subject=f"device {name}") for name in "ab")
    rows = [refusals.row(each, is_proven=True) for each in (a, a, b, b, a)]
    assert rows == [a, None, b, None, None]
    later = NOW + timedelta(seconds=70)
    due = refusals.due(later)
    assert sorted((row.subject, row.detail.get("left_out")) for row in due) == [("device a", "1"), ("device b", None)]
    refusals.put_back(due[0])
    assert sum(1 + int(row.detail.get("left_out", 0)) for row in refusals.due(later + timedelta(seconds=70))) == 2
    others = (replace(a, subject=f"device c-{n}") for n in range(50))
    assert sum(refusals.row(each, is_proven=True) is not None for each in others) <= 8 + 1  # and one of all others


def test_many_addresses_are_one_kind_and_take_bounded_room() -> None:
    refusals = Refusals(kinds_max=4)
    written = [refusals.row(refused(f"192.0.2.{n}")) for n in range(100)]
    assert sum(row is not None for row in written) == 5
    later = [refusals.row(refused(f"198.51.100.{n}", seconds=61)) for n in range(100)]
    assert sum(row is not None for row in later) <= 6


def test_the_row_after_a_quiet_minute_counts_nothing_left_out() -> None:
    refusals = Refusals()
    assert refusals.row(refused()) == refused()
    assert refusals.row(refused(seconds=60)) == refused(seconds=60)
    assert refusals.row(refused(seconds=120)) == refused(seconds=120)


def test_a_clock_that_was_put_back_does_not_silence_a_kind() -> None:
    refusals = Refusals()
    refusals.row(refused())
    assert refusals.row(refused(seconds=-59)) is None
    assert refusals.row(refused(seconds=-60)) is not None


def test_the_number_left_out_is_added_to_the_rows_own_detail() -> None:
    refusals = Refusals()
    entry = replace(refused(), detail={"serial": "5d"})
    refusals.row(entry)
    refusals.row(entry)
    row = refusals.row(replace(entry, at=NOW + timedelta(minutes=1)))
    assert row is not None
    assert row.detail == {"serial": "5d", "left_out": "1"}


def test_successes_are_grouped_by_their_device_and_refusals_of_made_up_names_are_not() -> None:
    refusals = Refusals()
    good = replace(refused(actor="station st1", code="ok"), subject="device a")
    assert refusals.row(good) is not None
    assert refusals.row(replace(good, subject="device b")) is not None
    assert refusals.row(replace(good, address="192.0.2.99")) is None
    bad = replace(refused(actor="station st1"), subject="device a")
    assert refusals.row(bad) is not None
    assert refusals.row(replace(bad, subject="device b")) is None
    assert refusals.row(replace(bad, action="device.reenroll")) is not None


def test_the_kind_that_was_written_longest_ago_makes_room() -> None:
    refusals = Refusals(kinds_max=2)
    a, b, c = "192.0.2.1", "192.0.2.2", "192.0.2.3"
    refusals.row(refused(a))
    refusals.row(refused(b, seconds=30))
    refusals.row(refused(a, seconds=61))  # b is the oldest now
    assert refusals.row(refused(c, seconds=89)) is not None  # as one of anywhere: b is not a minute old yet
    assert refusals.row(refused("192.0.2.4", seconds=89.5)) is None
    assert refusals.row(refused(c, seconds=90)) is not None  # by its name, in the place of b
    assert refusals.row(refused(c, seconds=91)) is None
    assert refusals.row(refused(a, seconds=91)) is None  # still known


def test_a_known_kind_keeps_its_own_row_when_the_memory_is_full() -> None:
    refusals = Refusals(kinds_max=1)
    refusals.row(refused())
    refusals.row(refused(seconds=1))
    refusals.row(refused("192.0.2.2", seconds=50))  # as one of anywhere
    row = refusals.row(refused(seconds=61))
    assert row is not None
    assert row.detail == {"left_out": "1"}


def test_beyond_the_memory_devices_and_strangers_are_counted_apart() -> None:
    refusals = Refusals(kinds_max=1)
    refusals.row(refused("192.0.2.1"))
    assert refusals.row(refused("192.0.2.2")) is not None
    assert refusals.row(refused(actor="device a")) is not None
    assert refusals.row(refused(actor="device b")) is None  # one row for all devices
    assert refusals.row(refused(actor="station st1")) is not None
    assert refusals.row(refused("192.0.2.3", code="other")) is not None


def test_strangers_from_many_networks_do_not_take_the_rows_of_devices() -> None:
    refusals = Refusals(kinds_max=8)
    for n in range(100):
        refusals.row(refused(f"192.0.2.{n}"))
    devices = [refused(actor=f"device cam-{n}", seconds=1) for n in range(4)]
    assert [refusals.row(entry) for entry in devices] == devices
    assert [refusals.row(entry) for entry in devices] == [None] * 4
    again = [refusals.row(refused(f"192.0.2.{n}", seconds=2)) for n in range(100)]
    assert again == [None] * 100  # who gave way is one of anywhere now, and gets no further row


def test_a_device_with_many_kinds_gives_way_to_another_and_takes_nothing_back() -> None:
    refusals = Refusals(kinds_max=8)
    for n in range(100):
        refusals.row(refused(code=f"code-{n}", actor="device loud"))
    quiet = [refused(code=f"code-{n}", actor="device quiet") for n in range(50, 53)]
    assert [refusals.row(entry) for entry in quiet] == quiet
    for n in range(100):
        refusals.row(refused(code=f"code-{n}", actor="device loud", seconds=1))
    assert [refusals.row(entry) for entry in quiet] == [None] * 3  # still known


def test_those_left_out_last_are_due_a_minute_later_in_one_row() -> None:
    refusals = Refusals()
    refusals.row(refused())
    for n in range(3):
        refusals.row(refused(seconds=10 + n))
    refusals.row(refused("192.0.2.2", seconds=20))  # alone: nothing of it was left out
    assert refusals.due(NOW + timedelta(seconds=59)) == []
    assert refusals.due(NOW + timedelta(seconds=60)) == [replace(refused(seconds=12), detail={"left_out": "2"})]
    assert refusals.due(NOW + timedelta(hours=1)) == []
    refusals = Refusals()
    refusals.row(refused())
    refusals.row(refused(seconds=1))
    assert refusals.due(NOW + timedelta(seconds=60)) == [refused(seconds=1)]
    assert refusals.row(refused(seconds=119)) is None  # a minute since that row
    assert refusals.due(NOW + timedelta(seconds=120)) == [refused(seconds=119)]


def test_at_the_end_all_are_due() -> None:
    refusals = Refusals()
    entry = replace(refused(), detail={"serial": "5d"})
    for _ in range(3):
        refusals.row(entry)
    assert refusals.due(NOW, at_once=True) == [replace(entry, detail={"serial": "5d", "left_out": "1"})]
    assert refusals.due(NOW, at_once=True) == []


def test_a_row_that_is_part_of_a_change_is_never_due() -> None:
    refusals = Refusals()
    for _ in range(3):
        refusals.row(refused(), by_itself=False)
    assert refusals.due(NOW, at_once=True) == []
    row = refusals.row(refused(seconds=60), by_itself=False)
    assert row is not None
    assert row.detail == {"left_out": "2"}


def test_a_row_that_could_not_be_written_is_due_at_once() -> None:
    refusals = Refusals()
    first = refusals.row(refused())
    assert first is not None
    refusals.put_back(first, at_once=True)
    assert refusals.due(NOW) == [refused()]
    refusals.row(refused(seconds=1))
    counting = replace(refused(seconds=2), detail={"left_out": "6"})
    refusals.put_back(counting, at_once=True)
    assert refusals.due(NOW + timedelta(seconds=2)) == [replace(refused(seconds=2), detail={"left_out": "7"})]


@pytest.mark.parametrize("seed", range(20))
def test_rows_and_what_they_count_add_up_to_all_entries(seed: int) -> None:
    random, refusals = Random(seed), Refusals(kinds_max=6)
    rows: list[AuditEntry] = []
    for step in range(2_000):
        actor = random.choice(("nobody", "device cam-1", "device cam-2", "station st1"))
        at = step * random.choice((0.01, 0.5))
        entry = refused(f"192.0.2.{random.randrange(20)}", f"code-{random.randrange(3)}", actor, at)
        row = refusals.row(entry)
        rows += [row] if row is not None else []
        if step % 100 == 99:
            rows += refusals.due(NOW + timedelta(seconds=at))
            refusals.put_back(rows.pop(random.randrange(len(rows))), at_once=random.random() < 0.5)
    rows += refusals.due(NOW + timedelta(hours=1), at_once=True)
    assert sum(1 + int(row.detail.get("left_out", "0")) for row in rows) == 2_000


async def test_a_refusal_is_audited_with_the_holder_of_the_certificate(registry: SqliteRegistry) -> None:
    held = Credential(
        *(b"f" * 32, "5d", CredentialKind.DEVICE, "cam-7", b"k" * 32, NOW, NOW, CredentialState.REVOKED, NOW, b"der")
    )
    await registry.commit(Change(AuditEntry(NOW, "test", "test", "", "ok"), (AddCredential(held),)))
    peer = Peer("192.0.2.1", b"der", (b"der",), held.fingerprint)
    for _ in range(3):
        await audit_refusal(registry, peer, NOW, "device.reenroll", "device ?", Refused("a-code", "No."))
    (row,) = (await registry.audit())[1:]
    assert row.entry == AuditEntry(
        NOW, "device cam-7", "device.reenroll", "device ?", "a-code", "192.0.2.1", {"serial": "5d"}
    )
    await audit_refusal(registry, Peer("192.0.2.1"), NOW, "device.enroll", "device ?", Refused("a-code", "No."))
    assert (await registry.audit())[-1].entry.actor == "nobody"


async def test_a_refusal_stands_when_it_cannot_be_audited(
    registry: SqliteRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(change: Change) -> None:
        raise Unavailable("disk-full", "The disk is full.")

    monkeypatch.setattr(registry, "commit", full)
    refusal = Refused("a-code", "No.")
    await audit_refusal(registry, Peer("192.0.2.1"), NOW, "device.enroll", "device ?", refusal)
    assert "disk is full" in str(refusal.__notes__)
    assert refusals_of(registry).due(NOW + timedelta(seconds=59)) == []
    assert refusals_of(registry).due(NOW + timedelta(seconds=60)) == [
        AuditEntry(NOW, "nobody", "device.enroll", "device ?", "a-code", "192.0.2.1")
    ]


async def test_each_registry_has_refusals_of_its_own(registry: SqliteRegistry, tmp_path: Path) -> None:
    other = await SqliteRegistry.open(tmp_path / "other.db")
    assert refusals_of(registry) is refusals_of(registry)
    assert refusals_of(other) is not refusals_of(registry)
    await other.close()
