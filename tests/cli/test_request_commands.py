"""`fleet request` on a home."""

import asyncio
import getpass
import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fleet.cli import main
from fleet.domain.approval import DEFAULT_WAITING, ApprovalRequest, key_fingerprint, request_id
from fleet.domain.changes import AuditEntry, Change
from fleet.domain.device import DeviceId
from fleet.domain.writes import AddRequest
from fleet.storage.engines import open_engine

NOW = datetime.now(UTC)
KEY = hashlib.sha256(b"key").digest()


def waiting(device: str, model: str = "default") -> ApprovalRequest:
    return ApprovalRequest(
        id=request_id(device, KEY),
        device_id=DeviceId(device),
        model=model,
        key_sha256=KEY,
        key_type="EC-P256",
        facts=f"CN={device}",
        address="192.0.2.1",
        network="192.0.2.1",
        first_seen=NOW,
        last_seen=NOW,
        expires_at=NOW + DEFAULT_WAITING.lifetime,
    )


@pytest.fixture
def asked(home: Path) -> list[ApprovalRequest]:
    requests = [waiting("cam-1"), waiting("cam-2")]

    async def add() -> None:
        registry = await open_engine(home / "registry.db")
        entry = AuditEntry(NOW, "nobody", "device.enroll", "device cam-1", "approval-pending")
        await registry.commit(Change(entry, tuple(AddRequest(r, DEFAULT_WAITING) for r in requests)))
        await registry.close()

    asyncio.run(add())
    return requests


def run_fleet(home: Path, *words: str, expect: int = 0) -> Result:
    done = CliRunner().invoke(main, [*words, "--home", str(home)])
    assert done.exit_code == expect, done.output
    return done


def test_listed_shown_approved_and_denied(home: Path, asked: list[ApprovalRequest]) -> None:
    one, other = asked
    rows = json.loads(run_fleet(home, "request", "list", "-o", "json").stdout)
    assert [row["id"] for row in rows] == sorted(r.id for r in asked)
    assert key_fingerprint(KEY) in run_fleet(home, "request", "list").stdout
    assert one.id in run_fleet(home, "request", "list", "--limit", "1").stderr or other.id < one.id
    shown = json.loads(run_fleet(home, "request", "show", one.id, "-o", "json").stdout)
    assert (shown["device"], shown["fingerprint"], shown["facts"]) == ("cam-1", key_fingerprint(KEY), "CN=cam-1")
    approved = json.loads(run_fleet(home, "request", "approve", one.id, "--reason", "seen it", "-o", "json").stdout)
    assert (approved["state"], approved["decided_by"], approved["reason"]) == (
        "approved",
        f"user {getpass.getuser()}",
        "seen it",
    )
    assert "state:       denied" in run_fleet(home, "request", "deny", other.id).stdout
    pending = run_fleet(home, "request", "list", "--state", "pending", "-o", "json")
    assert json.loads(pending.stdout) == []
    assert [
        r["id"] for r in json.loads(run_fleet(home, "request", "list", "--device", "cam-2", "-o", "json").stdout)
    ] == [other.id]
    audit = run_fleet(home, "audit", "list", "-o", "json").stdout
    assert [row["action"] for row in json.loads(audit)][-2:] == ["request.approve", "request.deny"]


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("show", "0" * 16), 1, "there is no request"),
        (("approve", "nobody"), 2, "is not the id of a request"),
        (("deny", "0" * 16), 1, "fleet request list"),
        (("approve",), 2, "missing argument"),
        (("list", "--state", "lost"), 2, "lost"),
        (("list", "--limit", "0"), 2, "limit"),
    ],
)
def test_what_cannot_be_done_is_told(home: Path, words: tuple[str, ...], code: int, says: str) -> None:
    assert says in run_fleet(home, "request", *words, expect=code).stderr.lower()


def test_a_reason_is_one_line(home: Path, asked: list[ApprovalRequest]) -> None:
    done = run_fleet(home, "request", "approve", asked[0].id, "--reason", "two\nlines", expect=2)
    assert "one line" in done.stderr


def test_denied_by_filter(home: Path, asked: list[ApprovalRequest]) -> None:
    def deny(*words: str, expect: int = 0) -> Result:
        return run_fleet(home, "request", "deny", "--filter", "address=192.0.2.0/24", *words, expect=expect)

    dry = deny("--dry-run", "-o", "json")
    assert {row["id"] for row in json.loads(dry.stdout)} == {r.id for r in asked}
    assert "2 requests match; nothing was changed." in dry.stderr
    assert "2 match, not 1" in deny("--count", "1", expect=1).output
    done = json.loads(deny("--count", "2", "--reason", "junk", "-o", "json").stdout)
    assert done == {"matched": 2, "done": 2, "failed": [], "left": 0}
    rows = json.loads(run_fleet(home, "request", "list", "-o", "json").stdout)
    assert [(row["state"], row["reason"]) for row in rows] == [("denied", "junk")] * 2
    assert json.loads(deny("--yes", "-o", "json").stdout)["matched"] == 0  # those that wait, unless it says more
    assert "Give a REQUEST_ID or --filter" in run_fleet(home, "request", "deny", expect=2).output
    assert "go with --filter" in run_fleet(home, "request", "deny", asked[0].id, "--yes", expect=2).output
    assert "is not a state" in run_fleet(home, "request", "deny", "--filter", "state=active", expect=2).output
