"""Every edit of a row is found, and the first bad row is named."""

import hashlib
from datetime import UTC, datetime, timedelta, timezone

import pytest
from msgspec.structs import replace

from fleet.domain.audit_log import NODE_LEVELS, grown, head_data, leaf_data, leaf_of, sound_leaves
from fleet.domain.changes import AuditEntry, AuditRow
from fleet.domain.errors import Invalid
from fleet.domain.merkle import EMPTY, leaf_hash

NOW = datetime(2026, 3, 1, 12, 0, 0, 654321, tzinfo=UTC)
ENTRY = AuditEntry(NOW, "operator", "device.revoke", "device cam-7", "ok", "192.0.2.1", {"reason": "lost", "a": "b"})


def log(length: int) -> list[AuditRow]:
    entries = [replace(ENTRY, subject=f"device cam-{seq}") for seq in range(1, length + 1)]
    return [AuditRow(seq, entry, leaf_of(entry, seq)) for seq, entry in enumerate(entries, 1)]


def broken(rows: list[AuditRow]) -> tuple[str, str]:
    with pytest.raises(Invalid) as caught:
        list(sound_leaves(rows))
    return caught.value.code, caught.value.message.removeprefix("The audit is broken: ")


def test_a_sound_log_gives_its_leaves() -> None:
    rows = log(5)
    assert list(sound_leaves(rows)) == [row.leaf for row in rows]
    assert list(sound_leaves([])) == []


def test_in_pages() -> None:
    rows = log(5)
    assert list(sound_leaves(rows[2:], 2)) == [row.leaf for row in rows[2:]]
    with pytest.raises(Invalid):
        list(sound_leaves(rows[2:], 1))


def test_the_leaf_is_what_it_was() -> None:
    """Fixed vectors: a log written by one version is verified by the next."""
    assert leaf_data(ENTRY, 1) == (
        b'[1,1772366400654321,"operator","device.revoke","device cam-7","ok","192.0.2.1",{"a":"b","reason":"lost"}]'
    )
    assert leaf_of(ENTRY, 1) == hashlib.sha256(b"\0" + leaf_data(ENTRY, 1)).digest()


def test_what_a_head_signs() -> None:
    """RFC 9162, 4.10: TreeHeadDataV2."""
    data = head_data(3, bytes(range(32)), NOW)
    assert data.hex() == "0000019ca9450c8e" + "0000000000000003" + "20" + bytes(range(32)).hex() + "0000"


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
    rows = log(3)
    rows[1] = AuditRow(2, entry, leaf_of(ENTRY, 2))
    assert broken(rows) == ("audit-changed", "row 2 has been changed.")


def test_the_order_of_a_map_and_the_zone_of_a_time_do_not_count() -> None:
    same = replace(
        ENTRY, detail={"a": "b", "reason": "lost"}, at=NOW.astimezone(timezone(timedelta(hours=5, minutes=30)))
    )
    assert leaf_of(same, 7) == leaf_of(ENTRY, 7)


@pytest.mark.parametrize("n", range(4))
def test_removed(n: int) -> None:
    rows = log(5)
    del rows[n]
    assert broken(rows) == ("audit-removed", f"row {n + 1} is missing.")


def test_several_removed() -> None:
    rows = log(6)
    assert broken([rows[0], *rows[4:]]) == ("audit-removed", "rows 2 to 4 are missing.")


def test_removed_and_renumbered() -> None:
    rows = log(5)
    moved = [replace(row, seq=row.seq - 1) for row in rows[2:]]
    assert broken([rows[0], *moved]) == ("audit-moved", "row 2 was written as row 3 and moved.")


def test_inserted_and_renumbered() -> None:
    rows = log(5)
    forged = replace(rows[1], entry=replace(ENTRY, subject="device forged"), leaf=b"")
    forged = replace(forged, leaf=leaf_of(forged.entry, 2))
    moved = [replace(row, seq=row.seq + 1) for row in rows[1:]]
    assert broken([rows[0], forged, *moved]) == (
        "audit-inserted",
        "something was inserted before row 3, which was written as row 2.",
    )


def test_changed_places() -> None:
    rows = log(5)
    rows[1], rows[2] = replace(rows[2], seq=2), replace(rows[1], seq=3)
    assert broken(rows) == ("audit-moved", "row 2 was written as row 3 and moved.")


def test_twice() -> None:
    rows = log(3)
    assert broken([*rows, rows[2]]) == ("audit-moved", "row 3 is after row 3.")


def test_a_leaf_that_was_changed() -> None:
    rows = log(3)
    rows[0] = replace(rows[0], leaf=bytes(32))
    assert broken(rows) == ("audit-changed", "row 1 has been changed.")


def test_nodes_come_as_they_become_whole() -> None:
    leaves = [leaf_hash(n.to_bytes(4)) for n in range(700)]
    tree, nodes = grown(EMPTY, leaves[:300])
    assert [(node.level, node.index) for node in nodes] == [(8, 0)]
    assert nodes[0].hash == EMPTY.appended(leaves[:256]).root()
    tree, nodes = grown(tree, leaves[300:])
    assert [(node.level, node.index) for node in nodes] == [(8, 1)]
    assert nodes[0].hash == EMPTY.appended(leaves[256:512]).root()
    assert tree == EMPTY.appended(leaves)


def test_a_node_of_each_level_there_is() -> None:
    _, nodes = grown(EMPTY, [bytes(32)] * (1 << NODE_LEVELS[1]))
    assert [node.index for node in nodes if node.level == 8] == list(range(256))
    assert [node.index for node in nodes if node.level == 16] == [0]
