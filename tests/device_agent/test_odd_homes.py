"""Homes in which something else stands in a file's place: every command ends, with words and without a traceback."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.device_agent.fleet_parts import Device

FILES = (
    "agent.toml", "ca.pem", "current", "slot-a/meta.json", "slot-a/key.pem", "slot-a/cert.pem", "slot-a",
    "attempts.txt", "subscriptions.json", "commands.json", "last-refusal.json", "clock.json", "saved-time.txt",
    "hooks.json", "agent.lock", "slots.lock", "agent.sock", "spool.db", "waiting", "bootstrap",
)  # fmt: skip


pytestmark = pytest.mark.usefixtures("forked_programs")


def fifo(place: Path) -> None:
    os.mkfifo(place)


def folder(place: Path) -> None:
    place.mkdir()
    (place / "x").touch()


def loop(place: Path) -> None:
    place.symlink_to(place.name)


def endless(place: Path) -> None:
    place.symlink_to("/dev/zero")


def garbage(place: Path) -> None:
    place.write_bytes(b"\xff\x00{[" * 1000)


def large(place: Path) -> None:
    with place.open("wb") as file:
        file.truncate(2**32)


def ended(home: Path, *words: str) -> str:
    """What a command says, once it has ended or, for `run`, has been killed after a while."""
    command = [sys.executable, "-m", "device_agent", "--home", str(home), *words]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, check=False
        )
    except subprocess.TimeoutExpired:
        return f"{words}: HANGS"
    return f"{done.returncode} {done.stdout}{done.stderr}"


@pytest.mark.long
@pytest.mark.parametrize("odd", [fifo, folder, loop, endless, garbage, large])
def test_something_else_in_the_place_of_each_file(device: Device, tmp_path: Path, odd: Callable[[Path], None]) -> None:
    bad = []
    for name in FILES:
        home = tmp_path / "home"
        shutil.rmtree(home, ignore_errors=True)
        shutil.copytree(device.home, home, symlinks=True)
        place = home / name
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)
        odd(place)
        for words in (
            ("status",),
            ("send", "t", "x"),
            ("run", "--stdin", "--exit-at-eof"),
            ("renew",),
            ("reset", "--yes", "--all"),
        ):
            said = ended(home, *words)
            if "Traceback" in said or "HANGS" in said:
                bad.append((name, words, said[-600:]))
    assert bad == []
