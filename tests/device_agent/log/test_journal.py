"""Entries of the journal, as its socket gets them."""

import io
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from device_agent.log.event_log import EventLog
from device_agent.log.journal import Journal, Priority
from tests.waiting import PATIENCE_SECONDS

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[socket.socket]:
    """Its socket: `tmp_path / "journal"`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(os.fspath(tmp_path / "journal"))
        receiver.settimeout(PATIENCE_SECONDS)
        yield receiver


def entry_of(data: bytes) -> dict[str, str]:
    """A datagram as systemd reads it."""
    found = {}
    while data:
        line, _, rest = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            size = int.from_bytes(rest[:8], "little")
            value, rest = rest[8 : 8 + size], rest[8 + size :]
            assert rest[:1] == b"\n"
            rest = rest[1:]
        found[name.decode()] = value.decode()
        data = rest
    return found


def test_an_event_is_an_entry_with_fields(
    journald: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "stderr").open("w") as stream:
        found = os.fstat(stream.fileno())
        monkeypatch.setattr("sys.stderr", stream)
        monkeypatch.setattr("device_agent.log.journal.ADDRESS", str(tmp_path / "journal"))
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
        log = EventLog(lambda: NOW)
        log.event("connect-failed", cause="network", reason="two\nMESSAGE=forged lines")
        entry = entry_of(journald.recv(4096))
        assert entry == {
            "MESSAGE": 'connect-failed cause=network reason="two\\nMESSAGE=forged lines"',
            "PRIORITY": "4",
            "SYSLOG_IDENTIFIER": "device-agent",
            "DEVICE_EVENT": "connect-failed",
            "DEVICE_CAUSE": "network",
            "DEVICE_REASON": "two\nMESSAGE=forged lines",
        }
        log.line("Error: no.")
        assert entry_of(journald.recv(4096))["PRIORITY"] == "3"
    assert (tmp_path / "stderr").read_text() == ""


REAL = """
mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /var/log && mkdir -p /run/systemd/journal
/lib/systemd/systemd-journald & journald=$!
trap 'kill $journald' EXIT
until [ -S /run/systemd/journal/socket ]; do sleep 0.05; done
"$1" -c 'from device_agent.log.journal import Journal, Priority
assert Journal().send(Priority.WARNING, "connect-failed", {"event": "connect-failed", "reason": "two\\nlines"})'
journalctl --sync
journalctl --no-pager -o json -t device-agent DEVICE_EVENT=connect-failed
"""


@pytest.mark.long
@pytest.mark.skipif(not Path("/lib/systemd/systemd-journald").exists(), reason="systemd-journald: not installed")
@pytest.mark.skipif(os.getuid() != 0, reason="mounts: needs root")
def test_a_real_journal_has_the_fields() -> None:
    command = ["unshare", "-m", "sh", "-ec", REAL, "sh", sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS)
    assert done.returncode == 0, done.stderr
    entry = json.loads(done.stdout)
    assert {key: entry[key] for key in ("MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER", "DEVICE_REASON")} == {
        "MESSAGE": "connect-failed",
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "device-agent",
        "DEVICE_REASON": "two\nlines",
    }


def test_only_the_stream_that_systemd_names_is_the_journal(tmp_path: Path) -> None:
    with (tmp_path / "a").open("w") as stream, (tmp_path / "b").open("w") as other:
        found = os.fstat(stream.fileno())
        environment = {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        assert Journal.behind(stream, environment) is not None
        assert Journal.behind(other, environment) is None
        assert Journal.behind(stream, {}) is None
    assert Journal.behind(stream, environment) is None  # closed
    assert Journal.behind(None, environment) is None
    assert not Journal(str(tmp_path / "nobody")).send(Priority.INFO, "x", {})


def test_without_a_journal_each_event_is_a_line_of_its_priority() -> None:
    shown = {}
    for least in (Priority.WARNING, Priority.INFO, Priority.DEBUG):
        stream = io.StringIO()
        log = EventLog(lambda: NOW, stream, least=least)
        for name in ("connect-failed", "connected", "hook-started"):
            log.event(name, to="a b", refused=False)
        shown[least] = stream.getvalue()
    line = f"2026-01-01T00:00:00Z %s to={json.dumps('a b')} refused=no\n"
    assert shown[Priority.WARNING] == line % "connect-failed"
    assert shown[Priority.INFO] == line % "connect-failed" + line % "connected"
    assert shown[Priority.DEBUG] == shown[Priority.INFO] + line % "hook-started"
