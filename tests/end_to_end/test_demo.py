"""`fleet demo` holds, on mosquitto and on the embedded broker, and leaves nothing behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

STEPS = ["init", "serve", "factory", "enroll", "connect", "publish", "isolate", "rotate", "revoke", "audit"]


def demo(folder: Path, *words: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Run the demo with `folder` as the place for temporary files."""
    return subprocess.run(
        [sys.executable, "-m", "fleet", "demo", *words],
        capture_output=True,
        text=True,
        env=dict(os.environ, TMPDIR=str(folder)),
        timeout=timeout,
        check=False,
    )


def has_mosquitto() -> bool:
    return shutil.which("mosquitto", path=os.environ.get("PATH", "") + ":/usr/sbin") is not None


@pytest.mark.parametrize("upstream", ["mosquitto", "embedded"])
def test_every_step_holds(upstream: str, tmp_path: Path) -> None:
    if upstream == "mosquitto" and not has_mosquitto():
        pytest.skip("mosquitto: not installed")
    folder = tmp_path / "a b"  # a space in the path, and far too long for the address of a socket
    folder.mkdir()
    done = demo(folder, "-o", "json", "--upstream", upstream)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line["step"] for line in lines] == STEPS
    assert all(line["ok"] is True and line["seconds"] >= 0 for line in lines)
    facts = {line["step"]: line for line in lines}
    assert facts["publish"]["seen"] == facts["publish"]["published"] == 150
    assert facts["rotate"]["lost"] == facts["rotate"]["duplicated"] == 0
    assert facts["rotate"]["old"] != facts["rotate"]["new"]
    assert list(folder.iterdir()) == []


def test_a_step_that_does_not_hold_is_named_and_ends_it(tmp_path: Path) -> None:
    no_room = ["sh", "-c", 'ulimit -f 1; exec "$0" -m fleet demo -o json', sys.executable]  # no file over 512 bytes
    done = subprocess.run(
        no_room, capture_output=True, text=True, env=dict(os.environ, TMPDIR=str(tmp_path)), timeout=240, check=False
    )
    assert done.returncode == 1
    (line,) = map(json.loads, done.stdout.splitlines())
    assert (line["step"], line["ok"]) == ("init", False)
    assert "Error: demo step init" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_demo_that_is_cut_off_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "fleet", "demo", "-o", "json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ, TMPDIR=str(tmp_path)),
        start_new_session=True,
    ) as running:
        assert running.stdout is not None
        assert json.loads(running.stdout.readline())["step"] == "init"
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=60)
    assert running.returncode == 130
    assert list(tmp_path.iterdir()) == []
