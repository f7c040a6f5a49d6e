"""Files that workers of a gateway share: which one is locked, and what is written to it."""

import fcntl
import os
from pathlib import Path

import pytest

from fleet.servers.gateway.limits.kept_clients import KeptClients
from fleet.servers.gateway.limits.kept_filters import KeptFilters
from fleet.servers.gateway.limits.locked_file import locked, write_at


def remove_before_next_lock(path: Path, patch: pytest.MonkeyPatch) -> None:
    """What another worker may do between our open and our lock."""

    def flock(descriptor: int, operation: int) -> None:
        patch.undo()
        path.unlink()
        fcntl.flock(descriptor, operation)

    patch.setattr(fcntl, "flock", flock)


def test_a_client_id_is_kept_though_its_file_was_removed_before_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = KeptClients(tmp_path)
    assert kept.begins("cam-1/old", [], 3, outlives=True)
    remove_before_next_lock(tmp_path / "cam-1,", monkeypatch)
    assert kept.begins("cam-1/a", [], 3, outlives=True)
    assert kept.of_device("cam-1") == ("cam-1/a",)


def test_a_file_that_was_removed_before_the_lock_is_none_to_who_only_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = KeptClients(tmp_path)
    assert kept.begins("cam-1/old", [], 3, outlives=True)
    remove_before_next_lock(tmp_path / "cam-1,", monkeypatch)
    assert kept.of_device("cam-1") == ()
    assert list(tmp_path.iterdir()) == []


def test_a_filter_is_kept_though_its_file_was_removed_before_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = KeptFilters(directory=tmp_path).of_session("cam-1", outlives_connection=True)
    remove_before_next_lock(tmp_path / "cam-1", monkeypatch)
    assert mine.add(["a"]) == frozenset()
    assert set(KeptFilters(directory=tmp_path).of_session("cam-1", outlives_connection=True)) == {"a"}


def test_a_full_disk_is_an_error_and_what_is_written_ends_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    with locked(path, os.O_RDWR | os.O_CREAT) as descriptor:
        write_at(descriptor, b"abcdef", 0)
        write_at(descriptor, b"x", 2)
        assert path.read_bytes() == b"abx"
        monkeypatch.setattr(os, "pwrite", lambda descriptor, data, start: len(data) - 1)
        with pytest.raises(OSError, match="disk is full"):
            write_at(descriptor, b"y", 0)


def test_a_client_id_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = KeptClients(tmp_path)
    with monkeypatch.context() as full:
        full.setattr(os, "pwrite", lambda descriptor, data, start: len(data) // 2)
        assert not kept.begins("cam-1/a", [], 3, outlives=True)
    assert kept.begins("cam-1/a", [], 3, outlives=True)
