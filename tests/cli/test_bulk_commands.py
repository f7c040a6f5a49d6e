"""Tags, filters and acts on many devices, as a person types them, on a real home."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from msgspec.structs import replace

from fleet.cli import main
from fleet.domain.changes import AuditEntry, Change
from fleet.domain.device import Device, DeviceFilter, DeviceId, DeviceState
from fleet.domain.writes import Insert
from fleet.storage.sqlite.registry import SqliteRegistry
from tests.serving import interrupted

pytestmark = pytest.mark.usefixtures("forked_programs")
RunFleet = Callable[..., Result]
NOW = datetime.now(UTC)


@pytest.fixture
def run_fleet(home: Path) -> RunFleet:
    """Run `fleet device …` on the home; `expect` is the exit code, `give` what is typed."""

    def run(*arguments: str, expect: int = 0, give: str = "") -> Result:
        done = CliRunner().invoke(main, ["device", *arguments], env={"FLEET_HOME": str(home)}, input=give)
        assert done.exit_code == expect, (arguments, done.stdout, done.stderr, done.exception)
        return done

    return run


def parsed(done: Result) -> Any:
    return json.loads(done.stdout)


def ids(done: Result) -> str:
    return " ".join(d["id"] for d in parsed(done))


async def fill(home: Path, count: int) -> None:
    """Active devices d0000 up, of lots L0 and L1 in turn, each ending an hour later than the one before."""
    registry = await SqliteRegistry.open(home / "registry.db", create=False)
    device = Device(DeviceId(""), "default", DeviceState.ACTIVE, NOW)
    writes = tuple(
        Insert(
            replace(
                device,
                id=DeviceId(f"d{n:04}"),
                tags=(("lot", f"L{n % 2}"),),
                expires_at=NOW + timedelta(hours=count - n),
            )
        )
        for n in range(count)
    )
    await registry.commit(Change(AuditEntry(NOW, "test", "prepare", "", "ok"), writes))
    await registry.close()


async def count(home: Path, where: DeviceFilter) -> int:
    registry = await SqliteRegistry.open(home / "registry.db", create=False)
    try:
        return await registry.count_devices(where)
    finally:
        await registry.close()


SUSPENDED = DeviceFilter(state=DeviceState.SUSPENDED)


def test_a_device_is_added_tagged_and_found(run_fleet: RunFleet) -> None:
    added = parsed(
        run_fleet("add", "cam-7", "--model", "default", "--tag", "lot=L7", "--group", "canary", "-o", "json")
    )
    assert (added["tags"], added["groups"], added["expires_at"]) == ({"lot": "L7"}, ["canary"], None)
    words = ("tag", "cam-7", "lot=L8", "site=Köln Süd", "--group", "pilot", "--ungroup", "canary", "-o", "json")
    tagged = parsed(run_fleet(*words))
    assert (tagged["tags"], tagged["groups"]) == ({"lot": "L8", "site": "Köln Süd"}, ["pilot"])
    assert parsed(run_fleet("tag", "cam-7", "--remove", "lot", "-o", "json"))["tags"] == {"site": "Köln Süd"}
    assert ids(run_fleet("list", "--tag", "site=Köln Süd", "--group", "pilot", "-o", "json")) == "cam-7"
    assert ids(run_fleet("list", "--tag", "lot=L8", "-o", "json")) == ""
    assert "site=Köln Süd" in run_fleet("list").stdout


def test_pages_by_expiry_go_on_where_they_ended(run_fleet: RunFleet, home: Path) -> None:
    asyncio.run(fill(home, 7))
    found, after = [], ""
    while True:
        page = run_fleet("list", "--expires-before", "30d", "--limit", "2", "--after", after, "-o", "json")
        found += [d["id"] for d in parsed(page)]
        if "--after" not in page.stderr:
            break
        after = page.stderr.split("--after ")[1].strip()
    assert found == [f"d{n:04}" for n in (6, 5, 4, 3, 2, 1, 0)]
    assert ids(run_fleet("list", "--expires-before", "90m", "-o", "json")) == "d0006"
    assert "not a position to resume after" in run_fleet("list", "--after", after, expect=2).stderr


def test_the_count_must_be_typed(run_fleet: RunFleet, home: Path) -> None:
    asyncio.run(fill(home, 10))
    lot = ("suspend", "--filter", "lot=L1 and state=active")
    for typed in ("yes\n", "6\n", ""):
        refused = run_fleet(*lot, give=typed, expect=1)
        assert "nothing was changed" in refused.stderr
        assert "Suspending 5 devices of: lot=L1" in refused.stderr
    assert "5 match, not 4" in run_fleet(*lot, "--count", "4", expect=1).stderr
    assert asyncio.run(count(home, SUSPENDED)) == 0
    done = parsed(run_fleet(*lot, "--reason", "leaks", "-o", "json", give="5\n"))
    assert {**done, "bulk": ""} == {
        "bulk": "",
        "matched": 5,
        "done": 5,
        "skipped": {},
        "failed": [],
        "interrupted": False,
    }
    assert asyncio.run(count(home, SUSPENDED)) == 5
    assert parsed(run_fleet("resume", "--filter", "lot=L1", "--count", "5", "-o", "json"))["done"] == 5
    assert parsed(run_fleet("resume", "--filter", "lot=L1", "--yes", "-o", "json"))["skipped"] == {
        "device-not-suspended": 5
    }
    again = parsed(shown := run_fleet("suspend", "--filter", "lot=L1", "--count", "5", "-o", "json"))
    assert shown.stderr.splitlines()[-1] == "5 of 5"
    nobody = run_fleet("suspend", "--filter", "lot=none", "--yes", "-o", "json")
    assert (nobody.stderr, parsed(nobody)["matched"]) == ("No device matches.\n", 0)
    assert again["bulk"] != done["bulk"]


def test_dry_run_lists_and_changes_nothing(run_fleet: RunFleet, home: Path) -> None:
    asyncio.run(fill(home, 6))
    dry = run_fleet("revoke", "--filter", "lot=L0", "--dry-run", "-o", "json")
    assert ids(dry) == "d0000 d0002 d0004"
    assert "3 devices match; nothing was changed" in dry.stderr
    assert run_fleet("retire", "--filter", "lot=L9", "--dry-run").stdout.startswith("ID")
    assert asyncio.run(count(home, DeviceFilter(state=DeviceState.ACTIVE))) == 6
    assert ids(run_fleet("list", "--filter", "lot=L0 and state=active", "-o", "json")) == ids(dry)


def test_tags_by_filter(run_fleet: RunFleet, home: Path) -> None:
    asyncio.run(fill(home, 6))
    assert "done:" in run_fleet("tag", "--filter", "lot=L0", "site=Oslo", "--group", "recall", "--yes").stdout
    assert ids(run_fleet("list", "--group", "recall", "--tag", "site=Oslo", "-o", "json")) == "d0000 d0002 d0004"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("suspend",), 2, "Give a DEVICE_ID or --filter"),
        (("suspend", "a", "--filter", "lot=L7"), 2, "Give a DEVICE_ID or --filter"),
        (("revoke", "a", "--yes"), 2, "go with --filter"),
        (("revoke", "--filter", "lot"), 2, "position 4: expected '=' after lot"),
        (("revoke", "--filter", "", "--yes"), 2, "the filter ends"),
        (("revoke", "--filter", "lot=L7", "--reason", "a\nb"), 2, "one line"),
        (("tag",), 2, "Give a DEVICE_ID or --filter"),
        (("tag", "cam-7"), 2, "no tag and no group is named"),
        (("tag", "cam-7", "lot"), 2, "no tag and no group is named"),
        (("tag", "cam-7", "lot=x", "site"), 2, "write KEY=VALUE"),
        (("list", "--filter", "lot==L7"), 2, "position 5: expected a value for lot"),
        (("tag", "cam-7", "state=x"), 2, "cannot be a tag's key"),
        (("tag", "--filter", "lot=L7", "cam-7", "lot=x"), 2, "Give a DEVICE_ID or --filter"),
        (("list", "--expires-before", "soon"), 2, "is not a time"),
        (("list", "--tag", "lot"), 2, "is not a tag"),
        (("list", "--filter", "lot"), 2, "position 4: expected '=' after lot"),
        (("list", "--filter", "lot=L7", "--state", "active"), 2, "write them into it"),
    ],
)
def test_refused(run_fleet: RunFleet, arguments: tuple[str, ...], code: int, says: str) -> None:
    assert says.lower() in run_fleet(*arguments, expect=code).stderr.lower()


def test_ctrl_c_finishes_what_was_begun_and_says_how_far_it_came(home: Path) -> None:
    asyncio.run(fill(home, 3000))
    words = ["device", "suspend", "--filter", "state=active", "--yes", "-o", "json"]
    environment = {**os.environ, "FLEET_HOME": str(home)}
    command = [sys.executable, "-m", "fleet", *words]
    result = interrupted(command, environment, 3000)
    assert asyncio.run(count(home, SUSPENDED)) == result["done"]
    again = json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert again["done"] == 3000 - result["done"]


def test_notify_says_what_is_wrong_with_a_message_and_that_nothing_is_served(
    run_fleet: RunFleet, home: Path, tmp_path: Path
) -> None:
    asyncio.run(fill(home, 2))
    for words, says in (
        ((), "Missing argument 'NAME'"),
        (("renew",), "Give a DEVICE_ID or --filter"),
        (("d0000",), "Missing argument 'NAME'"),
        (("d0000", "a/+"), "one to four levels of letters, digits, . _ - separated by /"),
        (("d0000", "renew", "--payload", "{"), "It is not JSON in UTF-8: Expecting property name"),
        (("d0000", "renew", "--payload", "renew"), "A text is written in quotes"),
        (("d0000", "renew", "--payload", '{"a": 1, "a": 2}'), "has a member twice"),
        (("d0000", "renew", "--payload", "1" * 70_000), "a number is too long"),
        (("d0000", "renew", "--payload", f"@{tmp_path / 'none'}"), "cannot be read: No such file"),
        (("d0000", "renew", "--payload", "@\0"), "cannot be read"),
        (("--filter", "lot=L0", "d0000", "renew"), "Give a DEVICE_ID or --filter"),
    ):
        assert says in run_fleet("notify", *words, expect=2).stderr
    payload = tmp_path / "payload.json"
    payload.write_text('{"within": 60}')
    away = ("--payload", f"@{payload}", "-o", "json")
    assert "broker-unreachable" in run_fleet("notify", "d0000", "renew", *away, expect=1).stderr
    done = run_fleet("notify", "--filter", "lot=L0", "renew", "--yes", *away, expect=1)
    assert [each["code"] for each in parsed(done)["failed"]] == ["broker-unreachable"]
    payload.write_text('"' + "x" * 70_000 + '"')
    assert "payload-too-large" in run_fleet("notify", "d0000", "renew", *away, expect=1).stderr
    payload.write_text(" " * 200_000)
    assert "It has more than 128KiB" in run_fleet("notify", "d0000", "renew", *away, expect=2).stderr
    payload.write_bytes(b'{"a":\n \xff}')
    assert (
        f"'{payload}' is not JSON in UTF-8: byte 7 is" in run_fleet("notify", "d0000", "renew", *away, expect=2).stderr
    )
    payload.write_text('{"a":\n 1,}')
    assert "at line 2, column " in run_fleet("notify", "d0000", "renew", *away, expect=2).stderr
    for ids in (("d0000",), ("d0000", "d0001")):
        assert "name-is-device" in run_fleet("notify", *ids, "d0001", expect=1).stderr
