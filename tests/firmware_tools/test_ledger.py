"""The ledger: rows on disk, half a line passed over, boards and device ids not given away twice."""

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
    ledger.check("pump-8", "SN-2")
    with pytest.raises(LedgerError, match="SN-1 was provisioned as pump-7") as caught:
        ledger.check("pump-8", "SN-1")
    assert caught.value.code == "board-known"
    with pytest.raises(LedgerError, match="pump-7 was given to board SN-1") as caught:
        ledger.check("pump-7", "SN-2")
    assert caught.value.code == "device-id-taken"
    # After --replace the latest word counts.
    ledger.append(replace(ROW, hardware_serial="SN-2"))
    ledger.check("pump-7", "SN-2")


def test_what_is_no_row_is_passed_over(ledger: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(b'\xff\xfe\n[1]\n"text"\n{"event": "provisioned"}\n\n' + b"x" * 100_000 + b"\n")
    assert list(ledger.rows()) == [{"event": "provisioned"}]
    ledger.append(ROW)
    assert json.loads(path.read_bytes().splitlines()[-1])["device_id"] == "pump-7"


def test_a_ledger_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", tmp_path / "nowhere" / "ledger"):
        with pytest.raises(LedgerError, match="cannot be written"):
            Ledger(path).append(ROW)
    with pytest.raises(LedgerError, match="cannot be read"):
        list(Ledger(tmp_path / "folder").rows())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk() -> None:
    with pytest.raises(LedgerError, match="No space left"):
        Ledger(Path("/dev/full")).append(ROW)


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
        other.write(b"{}\n")
        other.flush()
        fcntl.flock(other, fcntl.LOCK_UN)
        appended.result(30)
    assert len(list(ledger.rows())) == 2
