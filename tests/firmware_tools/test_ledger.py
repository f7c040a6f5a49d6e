"""The ledger: rows on disk, half a line passed over, a damaged one not, boards and device ids not given away twice."""

import errno
import fcntl
import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from firmware_tools.station import ledger as module
from firmware_tools.station.errors import LedgerError
from firmware_tools.station.ledger import FAILED, ISSUED, PROVISIONED, Ledger, Row
from tests.waiting import PATIENCE_SECONDS

ROW = Row(PROVISIONED, "2026-01-01T00:00:00.000Z", "2026-01-01T00:00:00.000Z", 1.5, "pump-7", "pump", "SN-1")


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.jsonl")


def test_no_ledger_is_an_empty_one(ledger: Ledger) -> None:
    assert list(ledger.rows()) == []
    ledger.check("pump-7", "SN-1")


def test_rows_come_back_in_order(ledger: Ledger, tmp_path: Path) -> None:
    rows = [ROW, replace(ROW, event=FAILED, code="bad-proof", message='a "quoted"\nline — ünd so'), ROW]
    for row in rows:
        ledger.append(row)
    assert list(ledger.rows()) == [asdict(row) for row in rows]
    assert stat.S_IMODE((tmp_path / "ledger.jsonl").stat().st_mode) & 0o007 == 0


def test_a_power_cut_at_any_octet_of_a_row(ledger: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger.append(ROW)
    first = path.read_bytes()
    ledger.append(ROW)
    whole = path.read_bytes()
    for size in range(len(first), len(whole)):
        path.write_bytes(whole[:size])
        ledger.append(replace(ROW, device_id="pump-8"))
        found = [row["device_id"] for row in ledger.rows()]
        # All but the newline was there: then the row is whole too.
        assert found == (["pump-7", "pump-7", "pump-8"] if size == len(whole) - 1 else ["pump-7", "pump-8"])


def test_several_stations_on_one_ledger(ledger: Ledger) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: ledger.append(replace(ROW, device_id=f"pump-{n}", message="x" * 900)), range(64)))
    assert sorted(str(row["device_id"]) for row in ledger.rows()) == sorted(f"pump-{n}" for n in range(64))


def test_a_board_known_by_another_name(ledger: Ledger) -> None:
    ledger.append(ROW)
    ledger.append(replace(ROW, event=ISSUED, device_id="pump-9"))  # never came to be
    ledger.append(replace(ROW, event=FAILED, device_id="pump-9"))
    ledger.check("pump-7", "SN-1")
    ledger.check("pump-7", " sn-1")  # as X.520 compares
    ledger.check("pump-8", "SN-2")
    with pytest.raises(LedgerError, match="SN-1 was provisioned as pump-7") as caught:
        ledger.check("pump-8", "SN-1")
    with pytest.raises(LedgerError, match="sn-1 was provisioned as pump-7"):
        ledger.check("pump-8", "sn-1")
    assert caught.value.code == "board-known"
    with pytest.raises(LedgerError, match="pump-7 was given to board SN-1") as caught:
        ledger.check("pump-7", "SN-2")
    assert caught.value.code == "device-id-taken"
    # After --replace the latest word counts.
    ledger.append(replace(ROW, hardware_serial="SN-2"))
    ledger.check("pump-7", "SN-2")


@pytest.mark.parametrize(
    "line",
    [
        b"secret",
        b"\xff\xfe",
        b"[1]",
        b'"text"',
        b"{}",
        b"",
        b'{"event": "provisioned"}',
        b'{"event": "sold", "device_id": "a", "hardware_serial": "b"}',
        b'{"event": "provisioned", "device_id": 7, "hardware_serial": "b"}',
        b'{"event": "provisioned", device_id": "pump-7", "message": ""}',  # one octet is lost
        b"x" * 100_000,
        b'{"event": "' + b"x" * 100_000,
        b"[" * 10_000,
    ],
)
@pytest.mark.parametrize("last", [False, True])
def test_a_line_that_is_no_row_refuses_the_file(ledger: Ledger, tmp_path: Path, line: bytes, last: bool) -> None:
    ledger.append(ROW)
    path = tmp_path / "ledger.jsonl"
    before = path.read_bytes()
    path.write_bytes(before + line + b"\n" + b"" if last else before + line + b"\n" + before)
    written = path.read_bytes()
    for read in (ledger.open, lambda: ledger.check("pump-8", "SN-2"), lambda: list(ledger.rows())):
        with pytest.raises(LedgerError, match=r"Line 2 of .* is not a row of a ledger") as caught:
            read()
        assert caught.value.code == "ledger-failed"
        assert line.decode("latin-1") not in caught.value.message or not line
    assert path.read_bytes() == written


def test_a_file_of_one_line_without_a_newline_is_no_ledger(tmp_path: Path) -> None:
    (tmp_path / "bob.password").write_text("secret")
    with pytest.raises(LedgerError, match="Line 1"):
        Ledger(tmp_path / "bob.password").open()


def test_a_row_that_loses_any_octet_never_loses_its_board(ledger: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger.append(ROW)
    whole = path.read_bytes()
    for at in range(len(whole) - 3):  # without its end it is a line that was cut off
        path.write_bytes(whole[:at] + b"\0" + whole[at + 1 :] + whole)
        with pytest.raises(LedgerError):
            ledger.check("pump-8", "SN-1")


def test_open_makes_an_empty_ledger_and_takes_a_cut_off_one(ledger: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger.open()
    assert path.read_bytes() == b""
    ledger.append(replace(ROW, message='a brace "} in a message'))
    whole = path.read_bytes()
    for size in range(1, len(whole)):
        path.write_bytes(whole[:size])
        ledger.open()
        assert path.read_bytes() == whole[:size]


def test_a_half_row_of_another_station_is_not_read_on(ledger: Ledger, tmp_path: Path) -> None:
    """Its other half, read as a line of its own, would refuse the ledger."""
    path = tmp_path / "ledger.jsonl"
    ledger.append(ROW)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:50])
    rows = ledger.rows()
    next(rows)
    with path.open("ab") as other:
        other.write(whole[50:])
    assert len(list(rows)) <= 1


@pytest.mark.parametrize("kind", ["fifo", "directory", "link to a fifo", "nowhere"])
def test_only_a_regular_file_is_a_ledger(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "ledger"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "link to a fifo":
        os.mkfifo(tmp_path / "fifo")
        path.symlink_to("fifo")
    else:
        path = path / "nowhere"
    for use in (Ledger(path).open, lambda: Ledger(path).append(ROW)):
        with pytest.raises(LedgerError, match="cannot be written") as caught:
            use()
        assert caught.value.code == "ledger-failed"
    if kind != "nowhere":
        with pytest.raises(LedgerError, match="it is not a regular file"):
            list(Ledger(path).rows())


def test_a_ledger_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", tmp_path / "nowhere" / "ledger"):
        with pytest.raises(LedgerError, match="cannot be written"):
            Ledger(path).append(ROW)
    with pytest.raises(LedgerError, match="cannot be read"):
        list(Ledger(tmp_path / "folder").rows())


def test_a_device_is_no_regular_file() -> None:
    with pytest.raises(OSError, match="not a regular file"):
        module._require_regular(Path("/dev/null").stat())


def test_a_full_disk(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(LedgerError, match="No space left"):
        ledger.append(ROW)


def test_a_line_is_utf8_for_people_to_read(ledger: Ledger, tmp_path: Path) -> None:
    ledger.append(replace(ROW, message="größer als 4 µs"))
    raw = (tmp_path / "ledger.jsonl").read_bytes()
    assert "größer als 4 µs".encode() in raw
    assert raw.count(b"\n") == 1


def test_the_name_of_a_new_ledger_is_durable(ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(module, "_sync_directory", synced.append)
    ledger.append(ROW)
    ledger.append(ROW)
    assert synced == [tmp_path]


def test_a_row_is_on_disk_when_it_is_appended(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    ledger.append(ROW)
    assert len(synced) == 2  # the file, and its name
    ledger.append(ROW)
    assert len(synced) == 3


def test_a_row_waits_for_the_other_station(ledger: Ledger, tmp_path: Path) -> None:
    """Its line may be half-written: ours would be joined to it."""
    with (tmp_path / "ledger.jsonl").open("wb") as other, ThreadPoolExecutor(1) as pool:
        fcntl.flock(other, fcntl.LOCK_EX)
        appended = pool.submit(ledger.append, ROW)
        assert wait([appended], timeout=0.3).not_done
        other.write(json.dumps(asdict(ROW)).encode() + b"\n")
        other.flush()
        fcntl.flock(other, fcntl.LOCK_UN)
        appended.result(PATIENCE_SECONDS)
    assert len(list(ledger.rows())) == 2
