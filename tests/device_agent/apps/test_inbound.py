"""Who gets a message, and when it is acknowledged: with a server and programs of lists."""

import io
import itertools
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from device_agent.apps.inbound import (
    EXTRAS_SIZE_MAX,
    OUTSTANDING_MAX,
    QUEUED_SIZE_MAX,
    UNACKNOWLEDGED_MAX,
    UNACKNOWLEDGED_SECONDS_MAX,
    Inbound,
)
from device_agent.apps.subscriptions import ENDED, FILTERS_MAX, RETURN_SECONDS_MIN
from device_agent.errors import SubscriptionRefused
from device_agent.log.event_log import EventLog
from device_agent.packets import Extras, Received, Subscribed, identifier
from device_agent.spool.inbox import Inbox, Incoming
from device_agent.spool.outbox import PAYLOAD_SIZE_MAX
from device_agent.spool.saved_filters import DAMAGED_NAME, FILE_NAME, SavedFilters


@dataclass
class FakeServer:
    is_up: bool = True
    subscribed: list[tuple[str, int]] = field(default_factory=list)
    unsubscribed: list[str] = field(default_factory=list)
    acknowledged: list[int] = field(default_factory=list)

    def subscribe(self, topic_filter: str, qos: int) -> int:
        self.subscribed.append((topic_filter, qos))
        return len(self.subscribed)

    def unsubscribe(self, topic_filter: str) -> int:
        self.unsubscribed.append(topic_filter)
        return 10_000 + len(self.unsubscribed)

    def acknowledge(self, packet_id: int) -> None:
        self.acknowledged.append(packet_id)


@dataclass(eq=False)
class FakeProgram:
    has_room: bool = True
    given: list[Incoming] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    uid: int = 0

    @property
    def payloads(self) -> list[bytes]:
        return [each.message.payload for each in self.given]

    def deliver(self, incoming: Incoming) -> None:
        self.given.append(incoming)

    def refused(self, topic_filter: str, reason: str) -> None:
        self.said.append(f"{topic_filter}: {reason}")

    def too_slow(self) -> None:
        self.said.append("too slow")


class World:
    def __init__(self, saved: SavedFilters | None = None) -> None:
        self.now = 0.0
        self.server = FakeServer()
        self.inbound = Inbound(self.server, lambda: self.now, Inbox(messages_max=100), saved)
        if saved is None or not saved.filters:
            self.inbound.came_up(session_present=False)

    def program(self, topic_filter: str = "a/#", qos: int = 1, keep_seconds: float = 0.0) -> FakeProgram:
        """A program whose subscription is granted."""
        program = FakeProgram()
        self.inbound.subscribe(program, topic_filter, qos, keep_seconds, program.said.append)
        self.inbound.subscribed(Subscribed(len(self.server.subscribed), ("",)))
        return program

    def receive(
        self, payload: bytes, packet_id: int = 0, *, topic: str = "a/b", dup: bool = False, of: tuple[str, ...] = ()
    ) -> None:
        identifiers = tuple(identifier(each) for each in of)
        qos = 1 if packet_id else 0
        self.inbound.received(Received(topic, payload, qos, packet_id, dup, retain=False, identifiers=identifiers))

    def take(self, program: FakeProgram, place: int = -1) -> None:
        self.inbound.take(program, program.given[place].number)


@pytest.fixture
def world() -> World:
    return World()


def test_each_program_gets_it_and_the_first_to_take_it_acknowledges(world: World) -> None:
    first, second, other = world.program(), world.program("a/+"), world.program("b/#")
    world.receive(b"x", 7)
    assert (first.payloads, second.payloads, other.payloads) == ([b"x"], [b"x"], [])
    assert world.server.acknowledged == []
    world.take(second)
    world.take(first)
    assert world.server.acknowledged == [7]
    assert len(world.inbound.inbox) == 0


@pytest.mark.parametrize("qos", [0, 1])
def test_a_copy_is_for_the_programs_of_its_filter(world: World, qos: int) -> None:
    wide, narrow, both = world.program("a/#"), world.program("a/b"), world.program("a/+")
    world.inbound.subscribe(both, "a/b", 1, 0, both.said.append)
    for number, each in enumerate(("a/#", "a/b", "a/+"), 1):
        world.receive(each.encode(), number * qos, of=(each,))
    assert wide.payloads == [b"a/#"]
    assert narrow.payloads == [b"a/b"]
    assert both.payloads == [b"a/b", b"a/+"]
    for program in (wide, narrow, both):
        for place in range(len(program.given)):
            world.take(program, place)
    assert sorted(world.server.acknowledged) == [1, 2, 3][: 3 * qos]


def test_one_copy_may_be_for_several_filters(world: World) -> None:
    wide, narrow, other = world.program("a/#"), world.program("a/b"), world.program("a/+")
    world.receive(b"x", of=("a/#", "a/b"))
    assert (wide.payloads, narrow.payloads, other.payloads) == ([b"x"], [b"x"], [])


def test_the_agent_itself_hears_each_message_once(world: World) -> None:
    heard: list[bytes] = []
    world.inbound.hear("a/b", lambda message: heard.append(message.payload))
    program = world.program("a/#")
    world.receive(b"own", 1, of=("a/b",))
    world.receive(b"the program's", 2, of=("a/#",))
    assert (heard, program.payloads, world.server.acknowledged) == ([b"own"], [b"the program's"], [1])


def test_a_filter_that_an_ended_program_has_left_adds_no_copy(world: World) -> None:
    """One of an earlier run of the agent, too: it is in the server's session."""
    world.inbound.gone(world.program("a/+", keep_seconds=600))
    program = world.program("a/#")
    for number, each in enumerate(("a/+", "a/#", "+/b"), 1):
        world.receive(each.encode(), number, of=(each,))
    assert program.payloads == [b"a/#"]
    world.take(program)
    world.now = Inbox.unwanted_seconds_max
    world.inbound.tick()
    assert world.server.acknowledged == [2, 3]  # the one of "+/b" is spare; the kept one waits for its program
    assert world.program("a/+").payloads == [b"a/+"]


def test_qos_0_is_for_those_who_are_there(world: World) -> None:
    program = world.program()
    world.receive(b"now")
    world.inbound.gone(program)
    world.receive(b"missed")
    assert (program.payloads, world.program().payloads) == ([b"now"], [])


def test_what_a_program_leaves_is_for_its_next_start(world: World) -> None:
    program = world.program(keep_seconds=30)
    world.receive(b"one", 1)
    world.receive(b"two", 2)
    world.take(program, 0)
    world.inbound.gone(program)
    world.receive(b"three", 3)
    again = world.program(keep_seconds=30)
    assert again.payloads == [b"two", b"three"]
    assert world.server.acknowledged == [1]
    world.take(again, 0)
    world.take(again, 1)
    assert world.server.acknowledged == [1, 2, 3]
    assert world.server.unsubscribed == []


def test_what_is_kept_has_an_end(world: World) -> None:
    program = world.program(keep_seconds=30)
    world.receive(b"x", 1)
    world.inbound.gone(program)
    world.now = 29.0
    world.inbound.tick()
    assert world.server.unsubscribed == []
    world.now = 30.0
    world.inbound.tick()
    assert world.server.unsubscribed == ["a/#"]
    world.now = Inbox.unwanted_seconds_max
    world.inbound.tick()
    assert (world.server.acknowledged, world.inbound.inbox.dropped) == ([1], 1)


def test_messages_of_an_earlier_run_wait_for_their_program(world: World) -> None:
    world.receive(b"early", 1)
    world.inbound.tick()
    assert world.program().payloads == [b"early"]


def test_another_program_is_not_given_what_one_is_busy_with(world: World) -> None:
    busy = world.program()
    world.receive(b"x", 1)
    assert world.program().payloads == []
    world.inbound.gone(busy)
    assert world.program().payloads == [b"x"]


@pytest.mark.parametrize("session_present", [True, False])
def test_a_message_that_comes_again_is_known(world: World, session_present: bool) -> None:
    program = world.program()
    world.receive(b"taken and lost", 1)
    world.take(program)
    world.receive(b"not taken", 2)
    world.receive(b"taken while down", 3)
    world.server.is_up = False
    world.take(program)
    world.server.is_up = True
    world.server.acknowledged.clear()
    world.inbound.came_up(session_present)
    assert len(world.server.subscribed) == (1 if session_present else 2)
    for number, payload in enumerate((b"taken and lost", b"not taken", b"taken while down"), 1):
        world.receive(payload, number, dup=session_present)
    if session_present:
        assert world.server.acknowledged == [1, 3]
        assert len(program.given) == 3
        world.take(program, 1)
        assert world.server.acknowledged == [1, 3, 2]
    else:  # a new session counts its packets from the beginning
        assert len(program.given) == 6


def test_another_message_with_a_known_packet_id_is_another(world: World) -> None:
    program = world.program()
    world.receive(b"one", 1)
    world.inbound.came_up(session_present=True)
    world.receive(b"two", 1, dup=True)
    world.receive(b"three", 2)
    assert program.payloads == [b"one", b"two", b"three"]


def test_one_that_hangs_keeps_messages_from_no_other(world: World) -> None:
    hangs = world.program()
    for number in range(1, UNACKNOWLEDGED_MAX + 1):
        world.receive(b"%d" % number, number)
    world.inbound.tick()
    assert world.server.acknowledged == []
    world.now = UNACKNOWLEDGED_SECONDS_MAX
    world.inbound.tick()
    assert len(world.server.acknowledged) == UNACKNOWLEDGED_MAX
    world.inbound.gone(hangs)
    assert len(world.program().given) == UNACKNOWLEDGED_MAX  # kept, though acknowledged


def test_what_nobody_present_wants_blocks_at_no_time(world: World) -> None:
    world.inbound.gone(world.program(keep_seconds=30))
    for number in range(1, UNACKNOWLEDGED_MAX + 1):
        world.receive(b"%d" % number, number)
    world.inbound.tick()
    assert len(world.server.acknowledged) == UNACKNOWLEDGED_MAX


def test_the_oldest_gives_way(world: World) -> None:
    for number in range(1, 151):
        world.receive(b"%d" % number, number)
    assert (len(world.inbound.inbox), world.inbound.inbox.dropped) == (100, 50)
    assert world.server.acknowledged[:50] == list(range(1, 51))
    assert world.program().payloads[0] == b"51"


def test_no_more_than_it_can_take_is_sent_to_a_program(world: World) -> None:
    program = world.program()
    for number in range(1, OUTSTANDING_MAX + 3):
        world.receive(b"%d" % number, number)
    assert len(program.given) == OUTSTANDING_MAX
    world.take(program, 0)
    assert len(program.given) == OUTSTANDING_MAX + 1
    program.has_room = False
    world.take(program, 1)
    assert len(program.given) == OUTSTANDING_MAX + 1
    program.has_room = True
    world.inbound.tick()
    assert len(program.given) == OUTSTANDING_MAX + 2


def test_the_biggest_holder_gives_way(world: World) -> None:
    slow, quick = world.program(), world.program()
    slow.has_room = False
    payload = b"x" * (QUEUED_SIZE_MAX // 20)
    for number in range(1, 31):
        world.receive(payload, number)
        world.take(quick)
    assert slow.said == ["", "too slow"]
    assert quick.said == [""]
    assert len(quick.given) == 30


def test_a_refusal_is_told_to_who_asked_and_to_who_had_it(world: World) -> None:
    had = world.program()
    asks = FakeProgram()
    world.inbound.subscribe(asks, "a/#", 1, 0, asks.said.append)
    world.inbound.subscribed(Subscribed(2, ("no",)))
    assert (had.said, asks.said) == (["", "a/#: no"], ["no"])
    world.receive(b"x", 1)
    assert (had.given, asks.given) == ([], [])


def test_a_subscription_waits_for_the_connection_and_is_made_again(world: World) -> None:
    world.server.is_up = False
    program = FakeProgram()
    world.inbound.subscribe(program, "a/#", 0, 0, program.said.append)
    world.inbound.subscribe(program, "a/b", 1, 0, program.said.append)
    assert world.server.subscribed == []
    world.server.is_up = True
    world.inbound.came_up(session_present=True)
    assert world.server.subscribed == [("a/#", 0), ("a/b", 1)]
    world.inbound.subscribed(Subscribed(1, ("",)))
    world.inbound.came_up(session_present=True)  # the answer to the second was lost with the connection
    assert world.server.subscribed[2:] == [("a/b", 1)]
    world.inbound.subscribed(Subscribed(2, ("",)))  # of the connection before
    assert program.said == [""]
    world.inbound.subscribed(Subscribed(3, ("",)))
    assert program.said == ["", ""]
    assert world.inbound.programs == 1
    assert world.inbound.unsubscribe(program, "a/b")
    assert not world.inbound.unsubscribe(program, "a/b")
    assert world.server.unsubscribed == ["a/b"]


def test_subscriptions_are_bounded(world: World) -> None:
    program = FakeProgram()
    for number in range(FILTERS_MAX):
        world.inbound.subscribe(program, f"a/{number}", 1, 0, program.said.append)
    with pytest.raises(SubscriptionRefused):
        world.inbound.subscribe(program, "a/b", 1, 0, program.said.append)
    world.inbound.gone(program)
    assert len(world.inbound.subscriptions) == 0


def test_a_message_that_fits_in_no_line_is_dropped(world: World) -> None:
    program = world.program("#")
    largest = Received("t" * 1024, b"x" * PAYLOAD_SIZE_MAX, 1, 1, dup=False, retain=False)
    world.inbound.received(largest)
    world.inbound.received(replace(largest, payload=largest.payload + b"x", packet_id=2))
    world.inbound.received(replace(largest, topic=largest.topic + "t", packet_id=3))
    world.inbound.received(replace(largest, extras=Extras(user=(("a", "x" * EXTRAS_SIZE_MAX),)), packet_id=4))
    world.inbound.received(replace(largest, topic=largest.topic + "t", qos=0, packet_id=0))
    assert world.server.acknowledged == [2, 3, 4]
    assert (len(program.given), world.inbound.inbox.dropped) == (1, 4)


USER, ANOTHER = 4001, 4002


def test_on_a_slow_link_one_subscribe_serves_all_who_ask_before_it_is_answered(world: World) -> None:
    programs = [FakeProgram() for _ in range(4)]
    for number, program in enumerate(programs):
        world.inbound.subscribe(program, "a/#", int(number > 0), 0, program.said.append)
    assert world.server.subscribed == [("a/#", 0)]
    world.inbound.subscribed(Subscribed(1, ("",)))
    assert world.server.subscribed == [("a/#", 0), ("a/#", 1)]  # for the retained messages, and the QoS, of the others
    assert [each.said for each in programs] == [[""], [], [], []]
    world.inbound.subscribed(Subscribed(2, ("",)))
    assert [each.said for each in programs] == [[""]] * 4
    assert len(world.server.subscribed) == 2


def test_all_who_wait_are_told_of_a_refusal(world: World) -> None:
    programs = [FakeProgram() for _ in range(3)]
    for program in programs:
        world.inbound.subscribe(program, "a/#", 1, 0, program.said.append)
    world.inbound.subscribed(Subscribed(1, ("no",)))
    assert [each.said for each in programs] == [["no"]] * 3
    assert (len(world.inbound.subscriptions), len(world.server.subscribed)) == (0, 1)


def test_who_is_gone_waits_for_no_answer(world: World) -> None:
    world.server.is_up = False
    stays, said = FakeProgram(), list[str]()
    world.inbound.subscribe(stays, "a/#", 1, 0, stays.said.append)
    for _ in range(100):
        program = FakeProgram()
        world.inbound.subscribe(program, "a/#", 1, 60, said.append)
        world.inbound.gone(program)
    (wanted,) = world.inbound.subscriptions._wanted.values()
    assert len(wanted.waiting) + len(wanted.asking) == 1
    assert (len(said), set(said)) == (100, {ENDED})
    world.server.is_up = True
    world.inbound.came_up(session_present=False)
    world.inbound.subscribed(Subscribed(1, ("",)))
    assert (stays.said, len(said)) == ([""], 100)


def test_a_user_that_takes_all_subscriptions_leaves_some_to_others(world: World) -> None:
    def takes(uid: int) -> int:
        before = len(world.inbound.subscriptions)
        with pytest.raises(SubscriptionRefused, match="of this user"):
            for number in itertools.count(before):
                program = FakeProgram(uid=uid)
                world.inbound.subscribe(program, f"{uid}/{number}", 1, 60.0, program.said.append)
                world.inbound.gone(program)  # kept, on account of its user
        return len(world.inbound.subscriptions) - before

    assert [takes(USER), takes(ANOTHER), takes(USER)] == [FILTERS_MAX // 2, FILTERS_MAX // 4, 0]
    owner = FakeProgram()
    for number in range(FILTERS_MAX // 4):
        world.inbound.subscribe(owner, f"o/{number}", 1, 0, owner.said.append)
    world.now = 60.0
    world.inbound.tick()
    assert len(world.inbound.subscriptions) == FILTERS_MAX // 4


def test_of_what_is_queued_the_biggest_user_gives_way_and_not_the_biggest_program(world: World) -> None:
    small = [FakeProgram(has_room=False, uid=USER) for _ in range(6)]
    for program in small:
        world.inbound.subscribe(program, "a/#", 1, 0, program.said.append)
    big = FakeProgram(has_room=False, uid=ANOTHER)
    world.inbound.subscribe(big, "+/b", 1, 0, big.said.append)
    world.receive(b"x" * 1000, 1, topic="c/b")  # it has more than each of them
    number = 1
    while not any("too slow" in each.said for each in [*small, big]):
        number += 1
        world.receive(b"x" * 50_000, number)
    assert big.said == []


def restarted(world: World, home: Path, *, session_present: bool = True) -> World:
    """Another run of the agent, at the same server, ten seconds later."""
    again = World(SavedFilters(home))
    again.now = world.now + 10
    again.server.subscribed.clear()
    again.inbound.came_up(session_present=session_present)
    return again


def unsubacked(world: World) -> None:
    world.inbound.subscribed(Subscribed(10_000 + len(world.server.unsubscribed), ()))


def test_what_no_program_comes_back_for_is_unsubscribed_after_a_restart(tmp_path: Path) -> None:
    first = World(SavedFilters(tmp_path))
    first.program("dead/#")
    first.program("back/#")
    first.program("long/#", keep_seconds=600)
    second = restarted(first, tmp_path)
    assert second.server.subscribed == []
    assert second.inbound.subscriptions.match("dead/x")  # as long as its program may come back
    back = second.program("back/#")
    second.now += RETURN_SECONDS_MIN
    second.inbound.tick()
    assert second.server.unsubscribed == ["dead/#"]
    assert not second.inbound.subscriptions.match("dead/x")
    unsubacked(second)
    second.now += 600
    second.inbound.tick()
    assert second.server.unsubscribed == ["dead/#", "long/#"]
    assert back.said == [""]


def test_in_a_new_session_there_is_nothing_to_unsubscribe(tmp_path: Path) -> None:
    first = World(SavedFilters(tmp_path))
    first.program("dead/#")
    second = restarted(first, tmp_path, session_present=False)
    second.now += 1000
    second.inbound.tick()
    assert (second.server.subscribed, second.server.unsubscribed) == ([], [])


def test_a_subscription_that_ends_while_there_is_no_connection_is_unsubscribed_by_the_next(world: World) -> None:
    program, other = world.program("a/#"), world.program("b/#")
    world.server.is_up = False
    world.inbound.gone(program)
    world.inbound.subscribe(other, "never/#", 1, 0, other.said.append)
    world.inbound.unsubscribe(other, "never/#")
    assert world.server.unsubscribed == []
    world.server.is_up = True
    world.inbound.came_up(session_present=True)
    assert world.server.unsubscribed == ["a/#"]  # and the server has never had the other
    world.inbound.came_up(session_present=True)
    assert world.server.unsubscribed == ["a/#", "a/#"]  # the first was lost with the connection
    unsubacked(world)
    world.inbound.came_up(session_present=True)
    assert world.server.unsubscribed == ["a/#", "a/#"]
    world.inbound.gone(other)
    world.program("b/#")
    world.inbound.came_up(session_present=True)
    assert world.server.unsubscribed == ["a/#", "a/#", "b/#"]  # not again: it is held


def test_the_file_of_filters_is_written_for_what_is_new_alone(tmp_path: Path) -> None:
    file = tmp_path / FILE_NAME
    world = World(SavedFilters(tmp_path))
    world.program("a/#")
    written = file.stat().st_ino, file.read_bytes()
    for _ in range(3):
        program = world.program("a/#")
        world.inbound.unsubscribe(program, "a/#")
    assert (file.stat().st_ino, file.read_bytes()) == written
    file.unlink()
    file.mkdir()
    World(SavedFilters(tmp_path)).program("a/#")


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"[]", b'{"a": 1}', b'{"a": {"x": 1}}', b"\xff", b"[" * 10_000, b'{"a": {"1": null}}'),
        *(b'{"a": {"1": Infinity}}', b'{"a": {"1": NaN}}', b'{"": {"0": 0}}', b'{"a/#/b": {"0": 0}}'),
        *(b'{"a/\\ud800": {"0": 0}}', b'{"a/\\u0000": {"0": 0}}', b'{"%s": {"0": 0}}' % (b"a" * 70_000)),
    ],
)
def test_a_damaged_file_of_filters_is_set_aside(tmp_path: Path, data: bytes) -> None:
    """What it holds goes into an UNSUBSCRIBE, which is made of filters alone."""
    log, file = io.StringIO(), tmp_path / FILE_NAME
    file.write_bytes(data)
    assert SavedFilters(tmp_path, EventLog(stream=log)).filters == {}
    assert "subscriptions-damaged kept_as=subscriptions.damaged.json" in log.getvalue()
    assert (file.exists(), (tmp_path / DAMAGED_NAME).read_bytes()) == (False, data)
