"""Counters always, lines within bounds, and no line that a peer could have written."""

import asyncio
import json
import logging

import pytest

from fleet.servers import line_limit
from fleet.servers.gateway.outcome_log import OutcomeLog
from fleet.servers.gateway.session.registry import SessionRegistry
from fleet.servers.line_limit import (
    FIRST_LINES_AUTHENTICATED_MAX,
    FIRST_LINES_MAX,
    LINES_EACH_MAX,
    LINES_PER_SECOND_MAX,
    NAMED_MAX,
    SOURCES_MAX,
    LineLimit,
)
from tests.waiting import PATIENCE_SECONDS


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


def test_strangers_take_no_line_of_a_device(lines: pytest.LogCaptureFixture) -> None:
    outcomes = OutcomeLog()
    for number in range(3 * SOURCES_MAX):
        outcomes.record("mqtt.connect", "no-certificate", 1.0, f"2001:db8::{number:x}")
    for number in range(10):
        outcomes.record("mqtt.connect", "no-certificate", 1.5, "cam-1", authenticated=True, device="cam-1", ms=number)
    assert sum("device=cam-1" in line for line in lines.messages) == 10


def test_many_certificates_hide_no_first_line(lines: pytest.LogCaptureFixture) -> None:
    outcomes = OutcomeLog()
    for device in range(FIRST_LINES_AUTHENTICATED_MAX):
        for _ in range(20):
            outcomes.record("mqtt.publish", "refused", 1.0, f"noisy-{device}", authenticated=True)
    before = len(lines.messages)
    assert before <= FIRST_LINES_AUTHENTICATED_MAX + LINES_PER_SECOND_MAX
    for kind in ("mqtt.publish", "mqtt.subscribe", "mqtt.connect"):
        outcomes.record(kind, "refused", 1.9, "cam-1", authenticated=True, device="cam-1")
    assert len(lines.messages) == before + 3


@pytest.mark.parametrize("authenticated", [False, True])
def test_a_newcomer_is_not_taken_for_one_that_has_had_its_lines(
    monkeypatch: pytest.MonkeyPatch, authenticated: bool
) -> None:
    monkeypatch.setattr(line_limit, "SOURCES_MAX", 20)
    limit = LineLimit(logging.getLogger("fleet.gateway"))
    for number in range(45):
        assert limit.allows(1.0, "refused", f"cam-{number}", authenticated=authenticated)
    share = limit._authenticated if authenticated else limit._others
    assert len(share._came) <= 20
    for number in range(200):
        for _ in range(12):
            limit.allows(1.0, "refused", f"loud-{number}", authenticated=authenticated)
    assert len(share._came) <= 20
    assert len(share.left_out) <= 20 + 1
    assert share.left_out.total() + share._of_kind.total() == 45 + 200 * 12


async def test_what_was_left_out_is_told_when_no_further_line_comes(
    lines: pytest.LogCaptureFixture,
) -> None:
    outcomes, told = OutcomeLog(), asyncio.Event()
    handler = logging.Handler()
    handler.emit = lambda record: told.set() if "log.suppressed" in record.getMessage() else None  # type: ignore[method-assign]
    logging.getLogger("fleet.gateway").addHandler(handler)
    try:
        now = asyncio.get_running_loop().time()
        for _ in range(LINES_EACH_MAX + 7):
            outcomes.record("mqtt.publish", "refused", now, "cam-1", authenticated=True)
        assert not told.is_set()
        await asyncio.wait_for(told.wait(), PATIENCE_SECONDS)
    finally:
        logging.getLogger("fleet.gateway").removeHandler(handler)
    assert lines.messages[-1] == "event=log.suppressed of=mqtt.publish.refused source=cam-1 lines=7"
    outcomes.close()
    outcomes.record("mqtt.publish", "refused", now + 2, "cam-1", authenticated=True)
    assert sum("log.suppressed" in line for line in lines.messages) == 1  # told once


def test_what_was_left_out_is_told_at_the_end(lines: pytest.LogCaptureFixture) -> None:
    outcomes = OutcomeLog()
    for _ in range(LINES_EACH_MAX + 7):
        outcomes.record("mqtt.publish", "refused", 1.0, "cam-1", authenticated=True)
    outcomes.close()
    assert lines.messages[-1] == "event=log.suppressed of=mqtt.publish.refused source=cam-1 lines=7"


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
