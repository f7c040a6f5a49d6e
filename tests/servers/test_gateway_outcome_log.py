"""Counters always, lines within bounds, and no line that a peer could have written."""

import json
import logging

import pytest

from fleet.servers.gateway.outcome_log import OutcomeLog
from fleet.servers.gateway.session_registry import SessionRegistry
from fleet.servers.line_limit import FIRST_LINES_MAX, LINES_EACH_MAX, LINES_PER_SECOND_MAX, NAMED_MAX


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "fleet.gateway")
    return caplog


def test_one_line_for_each_outcome(lines: pytest.LogCaptureFixture) -> None:
    outcomes = OutcomeLog()
    outcomes.record("mqtt.connect", "ok", 1.0, device="cam-7", serial="5d", topic="", ms=3)
    assert lines.messages == ["event=mqtt.connect device=cam-7 serial=5d ms=3 code=ok"]
    assert outcomes.counts == {"mqtt.connect.ok": 1}


@pytest.mark.parametrize("text", ["a b", "x\nevent=forged", 'q"', "a=b", "\x1b[2J", "\u2028", "\ud800"])
def test_a_peers_text_stays_one_value(lines: pytest.LogCaptureFixture, text: str) -> None:
    OutcomeLog().record("mqtt.publish", "refused", 1.0, topic=text)
    (line,) = lines.messages
    assert line.isprintable()
    value = line.removeprefix("event=mqtt.publish topic=").removesuffix(" code=refused")
    assert value.startswith('"')
    assert json.loads(value) == text


def test_long_text_is_cut(lines: pytest.LogCaptureFixture) -> None:
    OutcomeLog().record("mqtt.publish", "refused", 1.0, topic="x" * 100_000)
    assert len(lines.messages[0]) < 200


def test_a_flood_is_counted_and_not_written(lines: pytest.LogCaptureFixture) -> None:
    outcomes = OutcomeLog()
    for _ in range(1000):
        outcomes.record("mqtt.connect", "device-suspended", 7.5, "cam-7")
    outcomes.record("mqtt.connect", "ok", 8.0, "cam-7")
    assert outcomes.counts == {"mqtt.connect.device-suspended": 1000, "mqtt.connect.ok": 1}
    assert len(lines.messages) == LINES_EACH_MAX + 2
    assert lines.messages[-2] == "event=log.suppressed of=mqtt.connect.device-suspended source=cam-7 lines=990"


def test_one_noisy_device_hides_nobody(lines: pytest.LogCaptureFixture) -> None:
    outcomes = OutcomeLog()
    for second in range(3):
        for number in range(2000):
            outcomes.record("mqtt.subscribe", "refused", second + number / 2000, "cam-1", device="cam-1")
            if number % 200 == 100:
                outcomes.record("mqtt.subscribe", "refused", second + number / 2000, "cam-2", device="cam-2")
    assert sum("device=cam-2" in line for line in lines.messages) == 30
    assert sum("device=cam-1" in line for line in lines.messages) == 30


def test_many_noisy_devices_hide_no_first_line_and_no_other_kind(lines: pytest.LogCaptureFixture) -> None:
    outcomes = OutcomeLog()
    for device in range(20):
        for _ in range(100):
            outcomes.record("mqtt.publish", "refused", 1.0, f"noisy-{device}", device=f"noisy-{device}")
    assert {line.rpartition("device=noisy-")[2].partition(" ")[0] for line in lines.messages} == set(
        map(str, range(20))
    )
    written = len(lines.messages)
    outcomes.record("mqtt.publish", "refused", 1.5, "cam-1", device="cam-1")
    outcomes.record("mqtt.subscribe", "refused", 1.5, "noisy-1", device="noisy-1")
    assert len(lines.messages) == written + 2
    outcomes.record("mqtt.connect", "ok", 2.0, "cam-1")
    told = [line for line in lines.messages if line.startswith("event=log.suppressed")]
    assert len(told) == NAMED_MAX + 1
    assert sum(int(line.rpartition("lines=")[2]) for line in told) == 20 * 100 - written


def test_lines_of_a_second_are_bounded_whoever_causes_them(lines: pytest.LogCaptureFixture) -> None:
    outcomes = OutcomeLog()
    for number in range(10_000):
        outcomes.record("mqtt.connect", f"code-{number % 20}", 1.0, f"source-{number}")
    assert len(lines.messages) == LINES_PER_SECOND_MAX + FIRST_LINES_MAX


def test_the_session_registry() -> None:
    sessions: SessionRegistry[str] = SessionRegistry()
    sessions.add("s1", b"f1")
    sessions.add("s2", b"f1")
    sessions.add("s3", None)
    sessions.claim("s1", "cam-1")
    sessions.claim("s2", "cam-1")
    assert len(sessions) == 3
    assert set(sessions.of_device("cam-1")) == set(sessions.of_fingerprint(b"f1")) == {"s1", "s2"}
    sessions.remove("s1", b"f1", "cam-1")
    sessions.remove("s1", b"f1", "cam-1")
    sessions.remove("s3", None, "")
    assert set(sessions) == {"s2"}
    assert sessions.of_device("cam-1") == ("s2",)
    sessions.remove("s2", b"f1", "cam-1")
    assert sessions.of_device("cam-1") == sessions.of_fingerprint(b"f1") == ()
    assert not sessions._by_device
    assert not sessions._by_fingerprint
