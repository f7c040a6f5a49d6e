"""`fleet demo` holds, on mosquitto and on the embedded broker, and leaves nothing behind; so does the quick start's."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.forks import write_script
from tests.waiting import PATIENCE_SECONDS

PROJECT = Path(__file__).parents[2]

STEPS = ["init", "serve", "factory", "enroll", "connect", "publish", "isolate", "rotate", "revoke", "audit"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """For temporary files: a space in its path, which is far too long for the address of a socket."""
    made = tmp_path / "a b"
    made.mkdir()
    return made


def demo(program: Sequence[str], folder: Path, *words: str) -> str:
    """What the demo prints that runs to its end, with `folder` as the place for temporary files."""
    environment = dict(os.environ, TMPDIR=str(folder))
    done = subprocess.run(
        [*program, "demo", *words], capture_output=True, text=True, env=environment, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(folder.iterdir()) == []
    return done.stdout


def test_every_step_holds_from_nothing(folder: Path) -> None:
    """By the quick start in the environment that it makes, elsewhere as the quick start runs it."""
    environment = PROJECT / ".venv"
    is_quick_start = Path(sys.prefix) == environment and (environment / ".installed").exists()
    program = ["sh", str(PROJECT / ".quickstart")] if is_quick_start else [sys.executable, "-m", "fleet"]
    lines = demo(program, folder).splitlines()
    assert [line.split()[:2] for line in lines] == [["ok", step] for step in STEPS]
    facts = dict(zip(STEPS, lines, strict=True))
    assert "published: 150" in facts["publish"]
    assert "seen: 150" in facts["publish"]
    assert "lost: 0" in facts["rotate"]


def test_every_step_holds_on_the_embedded_broker(folder: Path, tmp_path: Path) -> None:
    forked = tmp_path / "fleet"
    write_script(forked, "fleet.cli:main", programs_too=True)
    lines = [
        json.loads(line) for line in demo([str(forked)], folder, "-o", "json", "--upstream", "embedded").splitlines()
    ]
    assert [line["step"] for line in lines] == STEPS
    assert all(line["ok"] is True and line["seconds"] >= 0 for line in lines)
    facts = {line["step"]: line for line in lines}
    assert facts["publish"]["seen"] == facts["publish"]["published"] == 150
    assert facts["rotate"]["lost"] == facts["rotate"]["duplicated"] == 0
    assert facts["rotate"]["old"] != facts["rotate"]["new"]


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
        running.communicate(timeout=PATIENCE_SECONDS)
    assert running.returncode == 130
    assert list(tmp_path.iterdir()) == []
