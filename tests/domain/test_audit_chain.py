"""The chain finds every edit, and names the first bad row."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest

from fleet.domain.audit_chain import GENESIS, row_hash, verify
from fleet.domain.changes import AuditEntry, AuditRow
from fleet.domain.errors import Invalid

NOW = datetime(2026, 3, 1, 12, 0, 0, 654321, tzinfo=UTC)
ENTRY = AuditEntry(NOW, "operator", "device.revoke", "device cam-7", "ok", "192.0.2.1", {"reason": "lost", "a": "b"})


def chain(length: int) -> list[AuditRow]:
    rows: list[AuditRow] = []
    previous = GENESIS
    for seq in range(1, length + 1):
        entry = replace(ENTRY, subject=f"device cam-{seq}")
        rows.append(AuditRow(seq, entry, previous, row_hash(entry, seq, previous)))
        previous = rows[-1].hash
    return rows


def broken(rows: list[AuditRow]) -> tuple[str, str]:
    with pytest.raises(Invalid) as caught:
        verify(rows)
    return caught.value.code, caught.value.message.removeprefix("The audit is broken: ")


def test_a_sound_chain_gives_its_last_hash() -> None:
    rows = chain(5)
    assert verify(rows) == rows[-1].hash
    assert verify([]) == GENESIS


def test_in_pages() -> None:
    rows = chain(5)
    assert verify(rows[2:], rows[1].hash, 2) == rows[-1].hash
    with pytest.raises(Invalid):
        verify(rows[2:], rows[0].hash, 2)


def test_the_hash_is_what_it_was() -> None:
    """A fixed vector: a chain written by one version is verified by the next."""
    assert row_hash(ENTRY, 1, GENESIS).hex() == VECTOR


VECTOR = "ba28f7398c710247abce924126d4244cf3948a41fedd6b17860246f5197f944c"


@pytest.mark.parametrize(
    "entry",
    [
        replace(ENTRY, at=NOW + timedelta(microseconds=1)),
        replace(ENTRY, actor="nobody"),
        replace(ENTRY, action="device.add"),
        replace(ENTRY, subject="device cam-8"),
        replace(ENTRY, outcome="refused"),
        replace(ENTRY, address=""),
        replace(ENTRY, detail={}),
        replace(ENTRY, detail={"reason": "lost", "a": "c"}),
        replace(ENTRY, actor="operatordevice.revoke", action=""),  # one field's end is not the next one's start
    ],
)
def test_every_field_counts(entry: AuditEntry) -> None:
    rows = chain(3)
    rows[1] = AuditRow(2, replace(ENTRY), rows[1].previous, row_hash(ENTRY, 2, rows[1].previous))
    rows[1] = replace(rows[1], entry=entry)
    assert broken(rows) == ("audit-changed", "row 2 has been changed.")


def test_the_order_of_a_map_and_the_zone_of_a_time_do_not_count() -> None:
    same = replace(
        ENTRY, detail={"a": "b", "reason": "lost"}, at=NOW.astimezone(timezone(timedelta(hours=5, minutes=30)))
    )
    assert row_hash(same, 7, GENESIS) == row_hash(ENTRY, 7, GENESIS)


def test_sequence_and_previous_hash_count() -> None:
    assert row_hash(ENTRY, 1, GENESIS) != row_hash(ENTRY, 2, GENESIS) != row_hash(ENTRY, 2, bytes(31) + b"1")


@pytest.mark.parametrize("n", range(4))
def test_removed(n: int) -> None:
    rows = chain(5)
    del rows[n]
    assert broken(rows) == ("audit-removed", f"row {n + 1} is missing.")


def test_several_removed() -> None:
    rows = chain(6)
    assert broken([rows[0], *rows[4:]]) == ("audit-removed", "rows 2 to 4 are missing.")


def test_removed_and_renumbered() -> None:
    rows = chain(5)
    moved = [replace(row, seq=row.seq - 1) for row in rows[2:]]
    assert broken([rows[0], *moved]) == ("audit-moved", "row 2 was written as row 3 and moved.")


def test_changed_places() -> None:
    rows = chain(5)
    rows[1], rows[2] = replace(rows[2], seq=2), replace(rows[1], seq=3)
    assert broken(rows) == ("audit-moved", "row 2 was written as row 3 and moved.")


def test_twice() -> None:
    rows = chain(3)
    assert broken([*rows, rows[2]]) == ("audit-moved", "row 3 stands after row 3.")


def test_hashed_anew_without_the_rest() -> None:
    rows = chain(5)
    entry = replace(ENTRY, outcome="refused")
    rows[2] = AuditRow(3, entry, rows[1].hash, row_hash(entry, 3, rows[1].hash))
    assert broken(rows) == ("audit-changed", "row 4 does not follow the row before it.")
    assert broken([replace(chain(1)[0], previous=bytes(31) + b"1")])[0] == "audit-changed"


def test_a_hash_that_was_changed() -> None:
    rows = chain(3)
    rows[0] = replace(rows[0], hash=bytes(32))
    assert broken(rows) == ("audit-changed", "row 1 has been changed.")
