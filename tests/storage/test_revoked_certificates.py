"""The journal of certificates that CRLs have listed: cut anywhere, it holds every whole line before the cut."""

import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from fleet.domain.crl import CrlEntry, Noted, Revocation
from fleet.storage.journals.revoked_certificates import Place, RevokedCertificates
from tests.storage.samples import NOW

CA = b"\x01" * 20


@dataclass
class Journal:
    """One at `path`."""

    path: Path

    def __post_init__(self) -> None:
        self.journal = RevokedCertificates(self.path)

    def note(self, serial: str, reason: int = 0, days: int = 30) -> None:
        revocation = Revocation(serial, NOW + timedelta(days=days), NOW, reason)
        self.journal.note([CrlEntry(revocation, CA, 1, b"")])

    def held(self, days: int = 0) -> dict[str, int]:
        return {serial: each.reason for serial, (each, _) in self.journal.read(NOW + timedelta(days=days)).items()}


def test_the_folder_of_a_new_journal_is_durable_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "state/revoked.jsonl")
    synced: list[tuple[int, int]] = []

    def note(handle: int) -> None:
        found = os.fstat(handle)
        synced.append((found.st_dev, found.st_ino))

    monkeypatch.setattr(os, "fsync", note)
    journal.note("a1")
    files = [(path.stat().st_dev, path.stat().st_ino) for path in (journal.path, journal.path.parent)]
    assert synced == files
    journal.note("a2")
    assert synced == [*files, files[0]]


def test_the_last_line_about_a_certificate_counts_and_expired_ones_leave(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "state/revoked.jsonl")
    assert journal.held() == {}
    journal.note("a1", reason=6)
    journal.note("a2", days=1)
    journal.note("a1", reason=1)
    assert journal.held() == {"a1": 1, "a2": 0}
    assert journal.held(days=1) == {"a1": 1}
    journal.journal.trim(NOW + timedelta(days=1))
    assert journal.held() == {"a1": 1}
    assert journal.path.read_bytes().count(b"\n") == 1
    journal.note("a3")
    [(revocation, ca)] = [each for serial, each in journal.journal.read(NOW).items() if serial == "a3"]
    assert (revocation.not_after, revocation.revoked_at, ca) == (NOW + timedelta(days=30), NOW, CA)
    assert journal.path.stat().st_mode & 0o777 == 0o600


def test_cut_at_every_byte_it_keeps_the_lines_before_and_takes_more(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "revoked.jsonl")
    journal.note("a1")
    first = journal.path.stat().st_size
    journal.note("a2")
    whole = journal.path.read_bytes()
    for end in range(len(whole) + 1):
        journal.path.write_bytes(whole[:end])
        kept = {"a1"} if first <= end < len(whole) else {"a1", "a2"} if end == len(whole) else set()
        assert set(journal.held()) == kept
        if end in (0, 5, first, first + 9):
            journal.note("a3")
            assert set(journal.held()) == kept | {"a3"}


def test_lines_that_are_no_revocation_are_left_out(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "revoked.jsonl")
    journal.note("a1")
    good = journal.path.read_bytes()
    for bad in (
        b"[]\n",
        b"7\n",
        b"{}\n",
        good.replace(b'"a1"', b'"zz"'),
        good.replace(b'"a1"', b"7"),
        b"[" * 400 + b"\n",
    ):
        journal.path.write_bytes(bad + good)
        assert journal.held() == {"a1": 0}


def test_cut_at_every_byte_it_says_no_place_that_was_not_reached(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "revoked.jsonl")
    until = NOW + timedelta(days=30)
    for number, serial in ((7, "a1"), (8, "a2")):
        journal.journal.follow([Noted(Revocation(serial, until, NOW, 1), CA, number)])
    whole = journal.path.read_bytes()
    for end in range(len(whole) + 1):
        journal.path.write_bytes(whole[:end])
        places, held = journal.journal.places(), journal.held()
        assert set(places) <= {CA}
        assert all(place.serial in held for place in places.values())
    assert places == {CA: Place(CA, 8, "a2")}
    journal.journal.trim(NOW)
    assert (journal.journal.places(), set(journal.held())) == (places, {"a1", "a2"})
    for line in (b'{"ca": 1, "through": 1, "last": "a"}', b'{"ca": "01", "through": true, "last": "a"}', b'"through"'):
        journal.path.write_bytes(line + b"\n")
        assert journal.journal.places() == {}
