from datetime import UTC, datetime, timedelta

from fleet.domain.changes import AuditEntry
from fleet.services.refusals import Refusals

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


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


def test_many_addresses_are_one_kind_and_take_bounded_room() -> None:
    refusals = Refusals(kinds_max=4)
    written = [refusals.row(refused(f"192.0.2.{n}")) for n in range(100)]
    assert sum(row is not None for row in written) == 5
    later = [refusals.row(refused(f"198.51.100.{n}", seconds=61)) for n in range(100)]
    assert sum(row is not None for row in later) <= 6
