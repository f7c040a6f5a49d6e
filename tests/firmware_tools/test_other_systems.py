"""The station's machine may run Windows or macOS: modules of POSIX are not needed to start, and their lack is said."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from firmware_tools.station import serial_link
from firmware_tools.station.errors import LedgerError, LinkError
from firmware_tools.station.ledger import PROVISIONED, Ledger, Row

ROW = Row(PROVISIONED, "2026-01-01T00:00:00.000Z", "2026-01-01T00:00:00.000Z", 1.5, "pump-7", "pump", "SN-1")
BLOCKED = "import sys; sys.modules |= dict.fromkeys(('fcntl', 'grp', 'pwd', 'resource', 'termios', 'tty'))"


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", f"{BLOCKED}\n{code}"], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "module",
    ["firmware_tools.station_cli", "firmware_tools.cli", "fleet.est_client.client", "fleet.wire.serial.vectors"],
)
def test_it_starts_without_posix_modules(module: str) -> None:
    done = run(f"import {module}")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("words", [["--help"], ["provision", "--help"]])
def test_it_helps_without_posix_modules(words: list[str]) -> None:
    done = run(f"sys.argv[1:] = {words}\nfrom firmware_tools.station_cli import main\nmain()")
    assert done.returncode == 0, done.stderr
    assert "Usage:" in done.stdout


def test_ports_that_python_cannot_use_are_said() -> None:
    done = run("sys.argv[1:] = ['ports']\nfrom firmware_tools.station_cli import main\nmain()")
    assert (done.returncode, done.stdout) == (3, "")
    assert re.fullmatch("Error: This system has no serial ports that Python can use: [a-z]+ is missing.\n", done.stderr)


def test_a_port_that_python_cannot_use_is_a_failure_of_the_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "serial", None)
    with pytest.raises(LinkError, match="serial ports") as caught:
        serial_link.SerialLink("/dev/null")
    assert caught.value.code == "port-failed"


class Windows:
    """msvcrt, as far as the ledger needs it."""

    LK_LOCK, LK_UNLCK = 1, 0

    def __init__(self, busy: bool = False) -> None:
        self.calls: list[tuple[int, int, int]] = []
        self.busy = busy

    def locking(self, descriptor: int, mode: int, size: int) -> None:
        self.calls.append((mode, os.lseek(descriptor, 0, os.SEEK_CUR), size))
        if self.busy:
            raise OSError(36, "Resource deadlock avoided")


def test_a_ledger_locks_by_windows_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    windows = Windows()
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", windows)
    ledger = Ledger(tmp_path / "ledger")
    ledger.append(ROW)
    ledger.append(replace(ROW, device_id="pump-8"))
    assert [row["device_id"] for row in ledger.rows()] == ["pump-7", "pump-8"]
    (_, place, size) = windows.calls[0]
    assert windows.calls == [(1, place, 1), (0, place, 1)] * 2
    assert place > 1_000_000_000  # a byte that is locked cannot be read by others
    assert size == 1
    windows.busy = True
    with pytest.raises(LedgerError, match="deadlock"):
        ledger.append(ROW)
    assert len(list(ledger.rows())) == 2


def test_a_ledger_without_locks_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", None)
    with pytest.raises(LedgerError, match="offers no file locks"):
        Ledger(tmp_path / "ledger").append(ROW)
    assert list(Ledger(tmp_path / "ledger").rows()) == []


def test_a_directory_that_cannot_be_opened_is_not_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "O_DIRECTORY")
    Ledger(tmp_path / "ledger").append(ROW)
    assert len(list(Ledger(tmp_path / "ledger").rows())) == 1
