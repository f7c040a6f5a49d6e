"""The spool: in order, kept over a restart, bounded by bytes and age, and what is refused is listed."""

import io
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from device_agent.apps.inbound import Inbound
from device_agent.config.spool import SpoolConfig
from device_agent.errors import SendRefused
from device_agent.link.clock import DeviceClock
from device_agent.log.event_log import EventLog
from device_agent.loop.executor import Executor
from device_agent.packets import Extras, Received, identifier
from device_agent.spool.inbox import MESSAGES_MAX as INBOX_MAX
from device_agent.spool.message_queue import Message
from device_agent.spool.outbox import ID_PROPERTY, PAYLOAD_SIZE_MAX, Bounds, Outbox
from device_agent.spool.rejected import MESSAGES_MAX, shown
from fleet.est_client.server_checks import ServerTime
from tests.device_agent.apps.test_inbound import FakeProgram
from tests.device_agent.spool_parts import BEGIN, MEBIBYTE, Kept, Time, deliver
from tests.small_files import files_of_at_most


def numbers(first: int, last: int) -> list[str]:
    return [str(number) for number in range(first, last)]


def test_what_was_accepted_is_there_after_a_crash_in_its_order(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    assert kept.put(*numbers(0, 100)) == [""] * 100
    assert kept.put(*numbers(100, 103)) == [""] * 3
    kept.crash()
    again = Kept(tmp_path)
    assert len(again.outbox) == 103
    assert deliver(again.outbox) == numbers(0, 103)
    again.spool.close()
    assert len(Kept(tmp_path).outbox) == 0


def test_nothing_is_answered_before_it_is_stored(tmp_path: Path) -> None:
    kept, answers = Kept(tmp_path), list[str]()
    kept.outbox.put(Message("t", b"x"), answers.append)
    assert answers == []
    assert kept.outbox.next_to_send(10) is None
    assert kept.outbox.unsaved == 1
    kept.spool.commit()
    assert answers == [""]
    assert kept.outbox.unsaved == 0


def test_an_acknowledged_message_is_forgotten_within_a_second(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    kept.put(*numbers(0, 5))
    assert deliver(kept.outbox, 3) == numbers(0, 3)
    kept.spool.commit()
    kept.time.passed += 1
    kept.spool.commit()
    kept.crash()
    assert deliver(Kept(tmp_path).outbox) == ["3", "4"]


def test_a_message_keeps_its_id_qos_and_properties(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    extras = Extras("answers/é", b"\0\xff", 60, (("unit", "°C"), ("unit", "K")))
    kept.outbox.put(asked := Message("t/ü", b"\0\xff", 1, extras=extras))
    kept.outbox.put(Message("t", b"", 0))
    kept.spool.commit()
    kept.crash()
    outbox = Kept(tmp_path, Time(kept.time.wall + timedelta(seconds=20.5))).outbox
    first = outbox.next_to_send(10)
    assert (first, first and first.id) == (asked, asked.id)
    assert first is not None
    user = (*extras.user, (ID_PROPERTY, asked.id))
    assert outbox.extras == Extras("answers/é", b"\0\xff", 40, user)
    outbox.sent(first, 1)
    second = outbox.next_to_send(10)
    assert second is not None
    assert (second.qos, outbox.extras) == (0, Extras())
    outbox.sent(second, 2)
    outbox.connection_lost()
    assert outbox.next_to_send(10) is first
    assert outbox.extras.user == user  # the same in each copy


def test_after_a_lost_connection_the_order_is_kept_across_what_is_in_the_file(tmp_path: Path) -> None:
    outbox = (kept := Kept(tmp_path)).outbox
    kept.put(*numbers(0, 200))
    sent = []
    for packet_id in range(10):
        message = outbox.next_to_send(32)
        assert message is not None
        outbox.sent(message, packet_id)
        sent.append(message.payload.decode())
    outbox.acknowledged(3)
    outbox.connection_lost()
    kept.put("200")
    assert deliver(outbox) == [text for text in numbers(0, 201) if text != "3"]


def test_when_full_the_newest_is_refused(tmp_path: Path) -> None:
    kept = Kept(tmp_path, settings=SpoolConfig(enabled=True, bytes_max=MEBIBYTE))
    text = "x" * 200_000
    for _ in range(5):
        assert kept.put(text) == [""]
    with pytest.raises(SendRefused, match="full: 5 messages wait, 1000505 bytes of 1048576"):
        kept.put(text)
    assert (kept.outbox.dropped, len(kept.outbox)) == (1, 5)
    assert kept.outbox.size <= MEBIBYTE
    assert kept.put("small") == [""]  # there is room for it
    deliver(kept.outbox, 1)
    assert kept.put(text) == [""]


@pytest.mark.parametrize("together", [True, False])
def test_when_full_the_oldest_gives_way_if_so_set(tmp_path: Path, together: bool) -> None:
    kept = Kept(tmp_path, settings=SpoolConfig(enabled=True, bytes_max=MEBIBYTE, drop="oldest"))
    heard: list[str] = []
    kept.outbox.put(Message("t", b"first", on_done=heard.append))
    for number in range(20):
        kept.outbox.put(Message("t", b"%03d" % number + b"x" * 200_000))
        if not together:
            kept.spool.commit()
    kept.spool.commit()
    assert not kept.outbox.is_full
    assert [text[:3] for text in deliver(kept.outbox)] == [f"{number:03}" for number in range(15, 20)]
    assert kept.outbox.dropped == 16
    assert heard == ["it was dropped for newer ones, since the outbox was full"]


def test_what_is_in_flight_is_not_dropped(tmp_path: Path) -> None:
    kept = Kept(tmp_path, settings=SpoolConfig(enabled=True, bytes_max=MEBIBYTE, drop="oldest"))
    kept.put(*["x" * 200_000] * 5)
    for packet_id in range(5):
        message = kept.outbox.next_to_send(10)
        assert message is not None
        kept.outbox.sent(message, packet_id)
    with pytest.raises(SendRefused, match="full"):
        kept.put("x" * 200_000)


@pytest.mark.parametrize("size", [1, 2_100, 5_000, PAYLOAD_SIZE_MAX])
def test_the_file_is_bounded_and_shrinks(tmp_path: Path, size: int) -> None:
    """With its log, at any moment, also where all arrive in one turn."""
    kept = Kept(tmp_path, settings=SpoolConfig(enabled=True, bytes_max=MEBIBYTE, drop="oldest"))
    bounds = []
    for _ in range(8):
        for _ in range(MEBIBYTE // 2 // (size + 300)):
            kept.outbox.put(Message("t", b"x" * size))
            assert kept.outbox.size <= MEBIBYTE
            bounds.append(sum(file.stat().st_size for file in tmp_path.iterdir()))
        kept.spool.commit()
    bounds.append(sum(file.stat().st_size for file in tmp_path.iterdir()))
    assert max(bounds) <= 2 * MEBIBYTE + 2 * MEBIBYTE
    deliver(kept.outbox)
    kept.spool.close()
    assert (tmp_path / "spool.db").stat().st_size < MEBIBYTE + 200_000


def test_old_messages_are_dropped(tmp_path: Path) -> None:
    settings = SpoolConfig(enabled=True, age_max_seconds=100)
    kept = Kept(tmp_path, settings=settings)
    kept.put(*numbers(0, 300))
    kept.time.passed = 60
    kept.put("young")
    kept.time.passed = 100
    kept.spool.commit()
    assert (len(kept.outbox), kept.outbox.expired) == (1, 300)
    kept.spool.close()
    again = Kept(tmp_path, Time(kept.time.wall + timedelta(seconds=159)), settings)
    assert deliver(again.outbox) == ["young"]
    again.put("old")
    again.spool.close()
    later = Kept(tmp_path, Time(kept.time.wall + timedelta(days=1)), settings)
    assert deliver(later.outbox) == []
    assert later.outbox.expired == 1


def test_a_jump_of_the_clock_ages_nothing(tmp_path: Path) -> None:
    settings = SpoolConfig(enabled=True, age_max_seconds=100)
    kept = Kept(tmp_path, Time(datetime(1970, 1, 1, tzinfo=UTC)), settings)
    kept.put("from 1970")
    kept.time.wall = datetime(2046, 1, 1, tzinfo=UTC)
    kept.time.passed = 50
    kept.put("of 2046")
    kept.spool.close()
    set_since = Kept(tmp_path, settings=settings)
    set_since.put("of 2026")
    set_since.spool.close()
    unset_again = Kept(tmp_path, Time(datetime(1970, 1, 1, tzinfo=UTC)), settings)
    unset_again.time.passed = 99
    assert deliver(unset_again.outbox) == ["from 1970", "of 2046", "of 2026"]
    unset_again.spool.close()
    future = Kept(tmp_path, Time(datetime(2046, 1, 1, tzinfo=UTC)), settings)
    future.put("in 2046")
    future.spool.close()
    assert deliver(Kept(tmp_path, settings=settings).outbox) == ["in 2046"]


def test_the_spool_ages_by_the_clock_that_a_server_has_corrected(tmp_path: Path) -> None:
    """The system says 2050: by that, a message of a moment ago is over."""
    kept = Kept(tmp_path, Time(true := datetime.now(UTC)), SpoolConfig(enabled=True, age_max_seconds=100))
    kept.put("of a moment ago")
    kept.spool.close()
    DeviceClock(tmp_path, lambda: true).learn(ServerTime(true, true - timedelta(days=1), true + timedelta(days=1)))
    wrong, time = datetime(2050, 1, 1, tzinfo=UTC), Time()
    log = EventLog(stream=io.StringIO())
    agent = Executor(kept.config, log, lambda: None, lambda: wrong, time.monotonic, lambda: 0.5)
    agent.spool.open()
    agent.spool.commit()
    assert deliver(agent.outbox) == ["of a moment ago"]
    time.passed = 101
    agent.outbox.put(Message("t", b"later"))
    agent.spool.close()
    assert deliver(Kept(tmp_path, Time(true + timedelta(seconds=150))).outbox) == ["later"]


def test_by_a_clock_that_is_not_set_nothing_is_over(tmp_path: Path) -> None:
    """A device was off for a month, and boots in 1970. NTP sets its clock after the message was stored."""
    settings, unset = SpoolConfig(enabled=True, age_max_seconds=100), datetime(1970, 1, 1, tzinfo=UTC)
    kept = Kept(tmp_path, settings=settings)
    kept.put("old", "older than the next is young")
    kept.time.passed = 99
    kept.put("young")
    kept.spool.close()
    booted = Kept(tmp_path, Time(unset), settings)
    booted.time.passed = 99
    booted.put("of a moment ago")
    assert booted.outbox.expired == 0
    booted.spool.close()
    a_month_later = Kept(tmp_path, Time(kept.time.wall + timedelta(days=30)), settings)
    assert deliver(a_month_later.outbox) == ["of a moment ago"]
    assert a_month_later.outbox.expired == 3


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_a_message_is_not_sent_after_its_time_to_live(tmp_path: Path, kind: str) -> None:
    time = Time()
    outbox = Kept(tmp_path, time).outbox if kind == "file" else Outbox(100, now=time.monotonic)
    heard: list[str] = []
    for seconds in (10, None, 20):
        outbox.put(Message("t", str(seconds).encode(), 1, heard.append, Extras(expiry_seconds=seconds)))
    outbox.commit()
    time.passed = 10.5
    outbox.commit()
    assert heard == ["it expired before it could be sent"]  # who waits for it is told, connected or not
    message = outbox.next_to_send(1)
    assert message is not None
    assert message.payload == b"None"
    outbox.sent(message, 1)
    outbox.acknowledged(1)
    last = outbox.next_to_send(1)
    assert last is not None
    assert outbox.extras.expiry_seconds == 10
    outbox.sent(last, 2)
    outbox.connection_lost()
    time.passed = 20
    assert outbox.next_to_send(1) is None
    assert (outbox.expired, len(outbox)) == (2, 0)


def test_what_is_refused_is_listed_bounded_and_can_be_retried(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    kept.put(*numbers(0, MESSAGES_MAX + 5))
    for packet_id in range(MESSAGES_MAX + 5):
        message = kept.outbox.next_to_send(1000)
        assert message is not None
        kept.outbox.sent(message, packet_id)
        kept.outbox.acknowledged(packet_id, "Not authorized: no such topic")
    kept.spool.close()
    again = Kept(tmp_path, Time(kept.time.wall + timedelta(days=300)))
    assert len(again.outbox.rejected) == MESSAGES_MAX
    entry = shown(again.outbox.rejected.entries()[0])
    assert entry.pop("id")
    assert entry == {
        "time": "2026-01-01T00:00:00+00:00",
        "topic": "t",
        "size": 1,
        "reason": "Not authorized: no such topic",
    }
    assert again.outbox.retry_rejected() == MESSAGES_MAX
    assert len(again.outbox.rejected) == MESSAGES_MAX  # until they are stored
    again.spool.commit()
    assert len(again.outbox.rejected) == 0
    assert deliver(again.outbox) == numbers(5, MESSAGES_MAX + 5)
    assert again.outbox.rejected.clear() == 0


def test_a_stopped_spool_hands_out_nothing_and_memory_goes_on(tmp_path: Path) -> None:
    kept, memory = Kept(tmp_path), Outbox(10)
    for outbox in (kept.outbox, memory):
        outbox.put(Message("t", b"x"))
        outbox.commit()
        outbox.stop()
    assert kept.outbox.next_to_send(10) is None
    assert kept.outbox.unsaved == 0
    assert memory.next_to_send(10) is not None


def test_the_counters_say_since_when_they_count(tmp_path: Path) -> None:
    settings = SpoolConfig(enabled=True, bytes_max=MEBIBYTE)
    for begin in (BEGIN, BEGIN + timedelta(hours=1)):
        kept = Kept(tmp_path, Time(begin), settings)
        assert kept.outbox.delivered == 0
        kept.put("x")
        deliver(kept.outbox)
        kept.time.wall += timedelta(minutes=1)
        status = kept.spool.status()
        assert (status["delivered"], status["counted_since"]) == (1, begin.isoformat())
        kept.spool.close()


def test_off_makes_no_file(tmp_path: Path) -> None:
    kept = Kept(tmp_path, settings=SpoolConfig())
    assert kept.put("x") == [""]
    kept.spool.close()
    assert list(tmp_path.iterdir()) == []
    assert kept.spool.status()["spool"] == "off"


class Acknowledging:
    """The server's side of an Inbound."""

    is_up = True

    def __init__(self) -> None:
        self.acknowledged: list[int] = []

    def subscribe(self, topic_filter: str, qos: int) -> int:
        return 1

    def unsubscribe(self, topic_filter: str) -> int:
        return 0

    def acknowledge(self, packet_id: int) -> None:
        self.acknowledged.append(packet_id)


def received(number: int, *, retain: bool = False) -> Received:
    return Received("down/a", b"%d" % number, 1, number, False, retain, Extras(user=(("n", str(number)),)))


def inbound_of(kept: Kept) -> tuple[Inbound, Acknowledging]:
    server = Acknowledging()
    inbound = Inbound(server, kept.time.monotonic, kept.spool.inbox)
    inbound.came_up(session_present=True)
    return inbound, server


def test_messages_from_the_fleet_are_acknowledged_once_stored_and_kept_until_taken(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    inbound, server = inbound_of(kept)
    for number in range(1, 4):
        inbound.received(received(number, retain=number == 2))
    assert server.acknowledged == []
    kept.spool.commit()
    assert server.acknowledged == [1, 2, 3]
    kept.crash()
    again = Kept(tmp_path, Time(kept.time.wall + timedelta(seconds=1000)))
    inbound, server = inbound_of(again)
    inbound.received(received(4))
    program = FakeProgram()
    inbound.subscribe(program, "down/#", 1, 0, program.said.append)
    assert program.payloads == [b"1", b"2", b"3", b"4"]
    assert [each.message.retain for each in program.given] == [False, True, False, False]
    assert program.given[0].message.extras.user == (("n", "1"),)
    inbound.take(program, program.given[0].number)
    inbound.take(program, program.given[3].number)  # before it is stored
    again.spool.close()
    left = Kept(tmp_path, kept.time).spool.inbox
    assert left is not None
    assert [each.message.payload for each in left] == [b"2", b"3"]


def test_a_stored_copy_stays_that_of_its_filter(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    inbound, _ = inbound_of(kept)
    for number, each in enumerate(("down/#", "down/+"), 1):
        inbound.received(replace(received(number, retain=number == 2), identifiers=(identifier(each),)))
    kept.spool.commit()
    kept.crash()
    inbound, _ = inbound_of(Kept(tmp_path, kept.time))
    for payload, each in ((b"2", "down/+"), (b"1", "down/#")):
        program = FakeProgram()
        inbound.subscribe(program, each, 1, 0, program.said.append)
        assert (program.payloads, program.given[0].message.retain) == ([payload], payload == b"2")


def test_an_inbox_that_is_half_full_leaves_the_rest_with_the_server(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    inbound, server = inbound_of(kept)
    for number in range(1, 601):
        inbound.received(received(number))
    kept.spool.commit()
    assert len(server.acknowledged) < 600
    with files_of_at_most(1):
        inbound.received(received(601))
        kept.spool.commit()
    assert 601 not in server.acknowledged  # it is in memory until a program takes it
    assert len(inbound.inbox) == 601
    assert kept.spool.database is not None
    assert kept.spool.database.queues["incoming"].count == 600


@pytest.mark.parametrize(("rows", "size", "left"), [(1100, 1, 1000), (24, 100_000, 20)])
def test_what_is_beyond_the_bounds_of_the_inbox_is_gone_and_no_number_is_given_twice(
    tmp_path: Path, rows: int, size: int, left: int
) -> None:
    """More rows than it may hold: the power was lost before the removal of those that had given way was stored."""
    kept = Kept(tmp_path)
    assert kept.spool.database is not None
    for number in range(rows):
        kept.spool.database.queues["incoming"].add(Message("down/a", b"%d " % number + b"x" * size), 0.0)
    kept.spool.close()
    again = Kept(tmp_path, kept.time)
    inbound, _ = inbound_of(again)
    inbound.received(received(1))
    held = list(inbound.inbox)
    assert len({each.number for each in held}) == len(held) == min(left + 1, INBOX_MAX)
    oldest = rows + 1 - len(held)
    assert [int(each.message.payload.split()[0]) for each in held] == [*range(oldest, rows), 1]
    again.spool.close()
    assert again.spool.database is not None
    assert again.spool.database.queues["incoming"].count == len(held)


def test_what_nobody_takes_has_an_end(tmp_path: Path) -> None:
    kept = Kept(tmp_path, settings=SpoolConfig(enabled=True, age_max_seconds=100))
    inbound, _ = inbound_of(kept)
    inbound.received(received(1))
    kept.spool.close()
    again = Kept(tmp_path, Time(kept.time.wall + timedelta(seconds=60)), SpoolConfig(enabled=True, age_max_seconds=100))
    inbound, _ = inbound_of(again)
    again.time.passed = 39
    inbound.tick()
    assert len(inbound.inbox) == 1
    again.time.passed = 40
    inbound.tick()
    again.spool.close()
    assert len(inbound.inbox) == 0
    left = Kept(tmp_path, kept.time).spool.inbox
    assert left is not None
    assert len(left) == 0


def test_bounds_of_age_hold_in_memory_too() -> None:
    time = Time()
    outbox = Outbox(10, Bounds(age_seconds_max=5), now=time.monotonic)
    outbox.put(Message("t", b"x"))
    time.passed = 5
    assert outbox.next_to_send(1) is None
