"""Commands of the fleet: which messages are one, and which are refused."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from device_agent.managed.commands import AGE_MAX, AHEAD_MAX, PAYLOAD_SIZE_MAX, Command, CommandRefused, read_command
from device_agent.packets import Received

NOW = datetime(2026, 7, 1, 12, tzinfo=UTC)
GOOD = {"id": "a1b2c3d4", "at": NOW.isoformat()}


def message(name: str, payload: object, *, retain: bool = False) -> Received:
    data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    return Received(f"devices/cam-1/fleet/agent/{name}", data, 1, 1, dup=False, retain=retain)


@pytest.mark.parametrize("name", ["renew", "report", "trust-update"])
def test_a_command_is_read(name: str) -> None:
    assert read_command(message(name, GOOD), NOW) == Command(name, GOOD["id"], NOW)


def test_a_command_cut_anywhere_is_refused() -> None:
    data = json.dumps(GOOD).encode()
    for size in range(len(data)):
        with pytest.raises(CommandRefused):
            read_command(message("renew", data[:size]), NOW)


@pytest.mark.parametrize(
    ("name", "payload"),
    [
        ("reboot", GOOD),
        ("", GOOD),
        ("exec", GOOD | {"command": "id"}),
        ("renew", GOOD | {"command": "id"}),
        ("renew", {"id": GOOD["id"]}),
        ("renew", {"at": GOOD["at"]}),
        ("renew", GOOD | {"id": 7}),
        ("renew", GOOD | {"id": "short"}),
        ("renew", GOOD | {"id": "a" * 65}),
        ("renew", GOOD | {"id": "a1b2c3d4\n"}),
        ("renew", GOOD | {"at": "yesterday"}),
        ("renew", GOOD | {"at": "2026-07-01T12:00:00"}),
        ("renew", GOOD | {"at": "0001-01-01T00:00:00+23:59"}),
        ("renew", []),
        ("renew", b"[" * PAYLOAD_SIZE_MAX),
        ("renew", b"\xff" + json.dumps(GOOD).encode()),
        ("renew", json.dumps(GOOD).encode() + b" " * PAYLOAD_SIZE_MAX),
        ("log-level", GOOD),
        ("log-level", GOOD | {"level": "trace"}),
    ],
)
def test_what_is_no_command_is_refused(name: str, payload: object) -> None:
    with pytest.raises(CommandRefused):
        read_command(message(name, payload), NOW)


def test_a_retained_command_is_refused() -> None:
    with pytest.raises(CommandRefused):
        read_command(message("report", GOOD, retain=True), NOW)


def test_its_age_is_judged_where_the_clock_is_set() -> None:
    for at in (NOW - AGE_MAX - timedelta(seconds=1), NOW + AHEAD_MAX + timedelta(seconds=1)):
        late = message("report", GOOD | {"at": at.isoformat()})
        with pytest.raises(CommandRefused):
            read_command(late, NOW)
        assert read_command(late, None).at == at
