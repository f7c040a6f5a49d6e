"""`fleet event list` at a home: the newest, those after a sequence, of a device and kind, and as they come."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from fleet.cli import main
from tests.waiting import PATIENCE_SECONDS


def run(home: Path, *arguments: str) -> str:
    done = CliRunner().invoke(main, arguments, env={"FLEET_HOME": str(home)})
    assert done.exit_code == 0, (arguments, done.output)
    return done.stdout


def events(home: Path, *options: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run(home, "event", "list", "-o", "json", *options))
    return found


def test_of_a_device_and_a_kind(home: Path) -> None:
    for name in ("cam-1", "cam-2"):
        run(home, "device", "add", name, "--model", "default")
    run(home, "device", "tag", "cam-1", "site=oslo")
    (password := home.parent / "password").write_text("of the p12\n")
    files = ("--out", str(home.parent / "files"), "--password-file", str(password))
    run(home, "operator", "add", "cam-2", "--role", "viewer", *files)
    everything = events(home)
    assert [each["seq"] for each in everything] == sorted(each["seq"] for each in everything)
    assert {"device.state", "device.tagged", "credential.issued"} <= {each["kind"] for each in everything}
    kinds = [(each["kind"], each["detail"]) for each in events(home, "--device", "cam-1")]
    assert kinds == [("device.state", "registered"), ("device.tagged", "")]
    assert [each["kind"] for each in events(home, "--device", "cam-2")] == ["device.state"]  # not the operator's
    [tagged] = events(home, "--kind", "device.tagged")
    assert tagged["subject"] == "cam-1"
    assert events(home, "--limit", "2") == everything[-2:]
    assert events(home, "--after", "0", "--limit", "2") == everything[:2]
    assert events(home, "--after", str(everything[0]["seq"])) == everything[1:]
    assert events(home, "--after", "999999") == events(home, "--device", "cam-9") == []
    heading, first, *_ = run(home, "event", "list", "--device", "cam-1").splitlines()
    assert heading.split() == ["SEQ", "KIND", "SUBJECT", "DETAIL"]
    assert first.split()[1:] == ["device.state", "cam-1", "registered"]


def test_followed(home: Path) -> None:
    run(home, "device", "add", "cam-1", "--model", "default")
    before = events(home)
    command = [sys.executable, "-m", "fleet", "event", "list", "--home", str(home), "--device", "cam-1"]
    follow = [*command, "--follow", "--limit", "2", "-o", "json", "--after", str(before[-1]["seq"] - 1)]
    with subprocess.Popen(follow, stdout=subprocess.PIPE, text=True) as following:
        try:
            assert following.stdout is not None
            assert json.loads(following.stdout.readline()) == before[-1]
            run(home, "device", "tag", "cam-1", "site=oslo")
            coming = json.loads(following.stdout.readline())
            assert (coming["kind"], coming["subject"]) == ("device.tagged", "cam-1")
            assert following.wait(PATIENCE_SECONDS) == 0
        finally:
            following.kill()
