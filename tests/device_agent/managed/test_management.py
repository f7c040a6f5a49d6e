"""What an agent does with commands, with children that answer when the test says so."""

import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from device_agent.apps.inbound import Inbound
from device_agent.enrollment.enrollment import EnrollmentJob, Outcome
from device_agent.enrollment.rotation import OnRenewed
from device_agent.log.event_log import EventLog
from device_agent.log.folding import FOLD_SECONDS
from device_agent.log.journal import Priority
from device_agent.managed import management
from device_agent.managed.done_commands import FILE_NAME, IDS_KEPT
from device_agent.managed.management import ANSWERS_MAX, DEADLINE_SECONDS, RENEW_SECONDS_MIN, Management
from device_agent.packets import Received

NOW = datetime(2026, 7, 1, 12, tzinfo=UTC)
OLD = b'{"ids": ["command1"], "forgotten_until": "", "renewed_at": ""}'
ZONELESS = b'{"ids": {"command1": "2026-07-01"}, "forgotten_until": "", "renewed_at": ""}'


class Child:
    def __init__(self, job: EnrollmentJob) -> None:
        self.answers: dict[str, str] = json.loads(job.answers)
        self.outcome: Outcome | None = None
        self.killed = False

    def read(self) -> Outcome | None:
        return self.outcome

    def kill(self) -> Outcome:
        self.killed = True
        return Outcome(ok=False, message="killed")


class World:
    """An agent whose server grants everything."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.children: list[Child] = []
        self.subscribed: list[str] = []
        self.acknowledged: list[int] = []
        self.renewals: list[OnRenewed] = []
        self.time = 1000.0
        self.text = io.StringIO()
        self.log = EventLog(lambda: NOW, self.text)
        self.is_set = True
        self.not_before = NOW - timedelta(days=1)
        self.device_id, self.home, self.stopping, self.is_up = "cam-1", tmp_path, False, True
        self.monotonic = lambda: self.time
        self.inbound = Inbound(self, self.monotonic)
        self.now = NOW
        self.clock: Any = SimpleNamespace(reading=lambda: SimpleNamespace(now=self.now, is_set=self.is_set))
        monkeypatch.setattr(management, "EnrollmentProcess", self._child)
        self.managed = Management(self, self.log)
        self.managed.start()
        self._packets = 0

    @property
    def current(self) -> Any:
        return SimpleNamespace(lifetime=SimpleNamespace(not_before=self.not_before))

    def force_renewal(self, on_renewed: OnRenewed) -> None:
        self.renewals.append(on_renewed)

    def subscribe(self, topic_filter: str, qos: int) -> int:
        self.subscribed.append(topic_filter)
        return len(self.subscribed)

    def unsubscribe(self, topic_filter: str) -> int:
        raise AssertionError(topic_filter)

    def acknowledge(self, packet_id: int) -> None:
        self.acknowledged.append(packet_id)

    def _child(self, job: EnrollmentJob) -> Child:
        self.children.append(Child(job))
        return self.children[-1]

    def give(self, name: str, id_: str, at: datetime = NOW, **terms: str) -> None:
        self._packets += 1
        payload = json.dumps({"id": id_, "at": at.isoformat(), **terms}).encode()
        topic = f"devices/cam-1/fleet/agent/{name}"
        self.inbound.received(Received(topic, payload, 1, self._packets, dup=False, retain=False))
        self.managed.tick()

    def answered(self) -> list[tuple[str, str]]:
        """Id and outcome of each command, all reports sent."""
        for child in self.children:
            child.outcome = Outcome(ok=True)
        self.managed.tick()
        if any(child.outcome is None for child in self.children):
            return self.answered()
        return [(child.answers["id"], child.answers["outcome"]) for child in self.children]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    return World(monkeypatch, tmp_path)


def test_a_command_is_acknowledged_done_once_and_answered(world: World) -> None:
    assert world.subscribed == ["devices/cam-1/fleet/agent/+"]
    for _ in range(3):
        world.give("report", "report01")
    assert world.acknowledged == [1, 2, 3]
    assert world.answered() == [("report01", "ok")]
    assert "report-sent" in world.text.getvalue()


def test_what_is_refused_is_logged_and_not_answered(world: World) -> None:
    world.give("exec", "command1")
    world.give("report", "command2", NOW - timedelta(days=2))
    assert world.answered() == []
    assert world.text.getvalue().count("command-refused") == 2  # each reason at once
    world.is_set = False
    world.give("report", "command2", NOW - timedelta(days=2))
    assert world.answered() == [("command2", "ok")]


def test_a_renewal_is_answered_once_it_is_proven(world: World) -> None:
    world.give("renew", "renewal1")
    assert not world.children
    [on_renewed] = world.renewals
    on_renewed("", "")
    assert world.answered() == [("renewal1", "ok")]
    world.time += RENEW_SECONDS_MIN - 1
    world.give("renew", "renewal2")
    assert world.answered()[-1] == ("renewal2", "The last renewal by command was less than 60 s ago. Ask again in 1 s.")
    world.time += 1
    world.give("renew", "renewal3")
    assert len(world.renewals) == 2
    world.renewals[-1]("The EST server refused it.", "Ask for a token.")
    assert world.answered()[-1] == ("renewal3", "The EST server refused it.")


def test_a_renewal_from_before_the_certificate_in_use_has_been_done(world: World) -> None:
    """As after a restart in the middle: the server gives the command again."""
    world.not_before = NOW
    world.give("renew", "renewal1", NOW - timedelta(seconds=1))
    assert not world.renewals
    assert world.answered() == [("renewal1", "ok")]


def test_a_command_that_is_replayed_after_a_restart_is_refused(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    world.give("report", "report01")
    world.give("renew", "renewal1")
    again = World(monkeypatch, tmp_path)
    again.time = 5.0  # another boot
    again.give("report", "report01")
    again.give("renew", "renewal1")
    assert (again.children, again.renewals) == ([], [])
    again.now += timedelta(seconds=RENEW_SECONDS_MIN - 1)
    again.give("renew", "renewal2", again.now)
    assert again.answered() == [("renewal2", "The last renewal by command was less than 60 s ago. Ask again in 1 s.")]
    later = World(monkeypatch, tmp_path)
    later.now += timedelta(seconds=RENEW_SECONDS_MIN)
    later.give("renew", "renewal3", later.now)
    assert len(later.renewals) == 1
    back = World(monkeypatch, tmp_path)  # a clock behind what was stored limits nothing
    back.now -= timedelta(hours=1)
    back.give("renew", "renewal4", back.now)
    assert len(back.renewals) == 1


def test_a_command_is_not_done_again_however_many_follow_it(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ats = [NOW - timedelta(minutes=10) + timedelta(seconds=number) for number in range(2 * IDS_KEPT)]
    for number, at in enumerate(ats):
        world.give("log-level", f"command{number}", at, level="info")
        world.answered()
    answered = len(world.children)
    again = World(monkeypatch, tmp_path)
    for each in (world, again):
        for number, at in enumerate(ats):
            each.give("log-level", f"command{number}", at, level="debug")
        assert each.log.least is Priority.INFO
    assert (len(world.children), again.children) == (answered, [])
    assert "older than commands that have been done" in again.text.getvalue()
    again.give("report", "anotherone", ats[-1])  # not older, and another
    assert again.answered() == [("anotherone", "ok")]


def test_commands_that_are_refused_over_and_over_are_a_line_a_minute(world: World) -> None:
    for number in range(1000):
        world.give(f"exec{number}", "command1")
    lines = world.text.getvalue().splitlines()
    assert [line.partition(" ")[2] for line in lines] == [
        'command-refused reason="there is no such command" topic=devices/cam-1/fleet/agent/exec0'
    ]
    world.time += FOLD_SECONDS
    world.managed.tick()
    assert world.text.getvalue().splitlines()[1:] == [lines[0].partition(" topic")[0] + " repeated=999"]
    for _ in range(2):
        world.give("exec", "command1")
    world.managed.stop()
    assert world.text.getvalue().splitlines()[2:] == [lines[0].partition(" topic")[0] + " repeated=2"]
    world.give("exec", "command1")
    assert len(world.text.getvalue().splitlines()) == 4


@pytest.mark.parametrize(
    "data", [b"", b"[]", b'{"ids": 1, "renewed_at": ""}', b'{"ids": [], "renewed_at": "x"}', b"\xff", OLD, ZONELESS]
)
def test_a_file_of_commands_that_cannot_be_read_or_written_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data: bytes
) -> None:
    (tmp_path / FILE_NAME).write_bytes(data)
    world = World(monkeypatch, tmp_path)
    (tmp_path / FILE_NAME).unlink()
    (tmp_path / FILE_NAME).mkdir()
    world.give("report", "report01")
    world.give("report", "report01")
    assert world.answered() == [("report01", "ok")]
    assert "command-not-stored" in world.text.getvalue()


def test_the_log_level_is_set(world: World) -> None:
    for level, least in (("debug", Priority.DEBUG), ("warning", Priority.WARNING), ("info", Priority.INFO)):
        world.give("log-level", f"level{level}", level=level)
        assert world.log.least is least
    assert len(world.answered()) == 3


def test_a_flood_of_commands_is_one_child_and_a_few_that_wait(world: World) -> None:
    for number in range(100):
        world.give("report", f"report{number:02}")
    assert len(world.children) == 1
    assert len(world.answered()) == ANSWERS_MAX + 1
    world.managed.stop()
    lines = [line for line in world.text.getvalue().splitlines() if "too many reports" in line]
    assert len(lines) == 2
    assert lines[1].endswith(f" repeated={98 - ANSWERS_MAX}")


def test_a_report_that_hangs_or_fails_is_logged_and_the_next_one_sent(world: World) -> None:
    world.give("report", "report01")
    world.give("report", "report02")
    world.time += DEADLINE_SECONDS + 5
    world.managed.tick()
    assert world.children[0].killed
    assert "report-failed reason=killed" in world.text.getvalue()
    assert len(world.children) == 2
    world.stopping = True
    world.give("report", "report03")
    world.managed.stop()
    assert world.children[1].killed
    assert world.managed.child.process is None
    assert len(world.children) == 2
