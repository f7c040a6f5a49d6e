"""The slots, and above all: a process that is killed, or a power cut, at any point leaves a usable identity."""

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from device_agent.errors import Busy, StoreDamaged
from device_agent.store import identity_store
from device_agent.store.atomic_files import write_atomically
from device_agent.store.identity_store import SLOTS, CertificateInfo, Identity, IdentityStore
from tests.device_agent.store.dying import BEGIN, END, put
from tests.waiting import PATIENCE_SECONDS


def serial_of(identity: Identity | None) -> str | None:
    return identity.certificate.serial if identity else None


def is_usable(identity: Identity) -> bool:
    """Key and certificate are whole, and of the same generation."""
    serial = identity.certificate.serial
    return (identity.key_file.read_text(), identity.certificate_file.read_text()) == (
        f"the key {serial}",
        f"certificate {serial}",
    )


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "a home"
    home.mkdir()
    return home


def test_blank(home: Path) -> None:
    store = IdentityStore(home)
    assert (store.current(), store.candidate()) == (None, None)
    assert store.slots() == {"slot-a": "empty", "slot-b": "empty"}


def test_the_life_of_two_generations(home: Path) -> None:
    store = IdentityStore(home)
    first = put(store, "1")
    assert store.current() is None
    assert store.candidate() == first
    store.promote(first)
    assert (store.current(), store.candidate()) == (first, None)
    second = put(store, "2")
    assert (store.current(), store.candidate()) == (first, second)
    assert second.slot != first.slot
    store.promote(second)
    assert (store.current(), store.candidate()) == (second, None)
    assert not first.key_file.exists()
    assert store.slots() == {first.slot: "empty", second.slot: "current"}
    assert (home / "current" / "cert.pem").read_bytes() == b"certificate 2"


def test_what_is_read_is_what_was_stored(home: Path) -> None:
    stored = put(IdentityStore(home), "1")
    assert IdentityStore(home).candidate() == stored
    assert stored.lifetime.not_after == END
    assert {file.stat().st_mode & 0o777 for file in (home / stored.slot).iterdir()} == {0o600}


def test_the_slot_in_use_cannot_be_cleared(home: Path) -> None:
    store = IdentityStore(home)
    first = put(store, "1")
    with pytest.raises(StoreDamaged):
        store.clear(first.slot)  # the only identity there is, though not promoted yet
    store.promote(first)
    with pytest.raises(StoreDamaged):
        store.clear(first.slot)
    assert store.current() == first


def test_a_key_without_certificate_is_taken_up_again(home: Path) -> None:
    store = IdentityStore(home)
    store.write_key("slot-a", b"key")
    assert store.unfinished_key("slot-a") == b"key"
    store.complete("slot-a", b"certificate", CertificateInfo("cam-7", "1", "fp", "CN=test", BEGIN, END))
    assert store.unfinished_key("slot-a") is None


def test_only_one_writer(home: Path) -> None:
    with IdentityStore(home).lock(), pytest.raises(Busy), IdentityStore(home).lock():
        pass
    with IdentityStore(home).lock():
        pass


def test_a_slot_is_the_owners_alone(home: Path) -> None:
    store = IdentityStore(home)
    store.write_key("slot-b", b"key")
    assert (home / "slot-b").stat().st_mode & 0o777 == 0o700
    assert store.key_file("slot-b") == home / "slot-b" / "key.pem"
    assert store.key_file("slot-b").stat().st_mode & 0o777 == 0o600
    assert store.slots() == {"slot-a": "empty", "slot-b": "incomplete"}


@pytest.mark.parametrize("obtained_at", [None, BEGIN])
def test_when_it_was_obtained_is_kept_if_it_is_known(home: Path, obtained_at: datetime | None) -> None:
    store = IdentityStore(home)
    store.write_key("slot-a", b"key")
    info = CertificateInfo("cam-7", "1", "fp", "CN=test", BEGIN, END, obtained_at)
    store.complete("slot-a", b"certificate", info)
    found = IdentityStore(home).candidate()
    assert found is not None
    assert found.certificate == info
    assert found.files == (home / "slot-a" / "cert.pem", home / "slot-a" / "key.pem")
    assert found.lifetime.begin == BEGIN


def test_each_identity_is_a_generation_later_than_all_before(home: Path) -> None:
    store = IdentityStore(home)
    generations = []
    for serial in "123":
        store.promote(put(store, serial))
        current = store.current()
        assert current is not None
        generations.append(current.generation)
    assert generations == [1, 2, 3]


def test_what_is_erased_is_erased_on_the_disk_too_and_its_record_first(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power loss in between, a slot without its record counts as empty; one without its key would not."""
    done: list[str] = []
    monkeypatch.setattr(identity_store, "sync_directory", lambda folder: done.append(f"{folder.name} synced"))
    store = IdentityStore(home, done.append)
    store.promote(put(store, "1"))
    store.write_key("slot-b", b"key")
    (home / "slot-b" / "cert.pem").write_bytes(b"certificate")
    (home / "slot-b" / "meta.json").write_bytes(b"{}")
    done.clear()
    store.clear("slot-b")
    removed = [f"{name} removed" for name in ("meta.json", "cert.pem", "key.pem")]
    assert done == [line for name in removed for line in (name, "slot-b synced")]


def test_the_lock_is_waited_for_as_long_as_asked(home: Path) -> None:
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with IdentityStore(home).lock():
            held.set()
            release.wait(PATIENCE_SECONDS)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(PATIENCE_SECONDS)
    timer = threading.Timer(0.1, release.set)
    timer.start()
    with IdentityStore(home).lock(wait_seconds=PATIENCE_SECONDS):
        assert release.is_set()
    holder.join()
    assert (home / "slots.lock").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", ["key.pem", "cert.pem", "meta.json"])
@pytest.mark.parametrize("left", [0, 1, 5, -1])
def test_a_file_cut_short_makes_the_slot_empty(home: Path, name: str, left: int) -> None:
    store = IdentityStore(home)
    store.promote(put(store, "1"))
    candidate = put(store, "2")
    file = home / candidate.slot / name
    file.write_bytes(file.read_bytes()[:left])
    assert serial_of(store.current()) == "1"
    assert store.candidate() is None
    assert store.spare_slot() == candidate.slot
    assert serial_of(put(store, "3")) == "3"


@pytest.mark.parametrize(
    "content", [b"[]", b"null", b'"x"', b'{"generation": 1}', b"\xff\xfe", b"{" * 2000, b"[" * 60_000]
)
def test_notes_that_are_none(home: Path, content: bytes) -> None:
    store = IdentityStore(home)
    candidate = put(store, "1")
    (home / candidate.slot / "meta.json").write_bytes(content)
    assert store.candidate() is None


def test_notes_that_lack_one_thing(home: Path) -> None:
    store = IdentityStore(home)
    file = home / put(store, "1").slot / "meta.json"
    whole = json.loads(file.read_text())
    for name in whole:
        file.write_text(json.dumps({key: value for key, value in whole.items() if key != name}))
        assert (store.candidate() is None) == (name != "obtained_at")
    file.write_text(json.dumps(whole | {"not_after": "2026-04-01T00:00:00"}))
    assert store.candidate() is None  # a date without a zone


def test_a_file_too_large_to_be_one(home: Path) -> None:
    store = IdentityStore(home)
    candidate = put(store, "1")
    candidate.certificate_file.write_bytes(b"x" * (64 * 1024 + 1))
    assert store.candidate() is None


@pytest.mark.parametrize("target", [None, "slot-c", "/etc", "../slot-a/../..", "slot-b"])
def test_a_lost_or_wild_pointer(home: Path, target: str | None) -> None:
    """With one complete slot that one is tried; with two, the elder is current: it has worked before."""
    store = IdentityStore(home)
    store.promote(put(store, "1"))
    pointer = home / "current"
    pointer.unlink()
    if target:
        pointer.symlink_to(target)
    assert serial_of(store.current() or store.candidate()) == "1"
    assert store.spare_slot() == "slot-b"
    if target != "slot-b":
        shutil.copytree(home / "slot-a", home / "slot-b")
        notes = home / "slot-b" / "meta.json"
        notes.write_text(notes.read_text().replace('"generation": 1', '"generation": 2'))
        assert store.current() is not None
        assert store.candidate() is not None
        assert (store.current() or store.candidate()).slot == "slot-a"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("generation", float("inf")),
        ("generation", float("nan")),
        ("not_before", "0001-01-01T00:00:00+14:00"),
        ("not_after", "9999-12-31T23:59:59-14:00"),
    ],
)
def test_a_number_or_a_date_that_cannot_be_counts_as_empty(home: Path, name: str, value: object) -> None:
    store = IdentityStore(home)
    first = put(store, "1")
    store.promote(first)
    meta = home / put(store, "2").slot / "meta.json"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {name: value}))
    assert (store.current(), store.candidate()) == (first, None)


def test_a_pointer_to_a_damaged_slot_leaves_the_other(home: Path) -> None:
    store = IdentityStore(home)
    store.promote(put(store, "1"))
    put(store, "2")
    (home / "slot-a" / "key.pem").write_bytes(b"")
    assert store.current() is None
    assert serial_of(store.candidate()) == "2"
    assert store.spare_slot() == "slot-a"


@pytest.mark.parametrize("renewals", [0, 1])
def test_what_is_in_use_and_cannot_be_read_for_now_is_kept_until_there_is_another(home: Path, renewals: int) -> None:
    store = IdentityStore(home)
    for number in range(renewals + 1):
        store.promote(put(store, f"{number}"))
    used = store.current()
    assert used is not None
    aside = used.key_file.rename(home / "aside")
    used.key_file.symlink_to(used.key_file)
    assert store.current() is None
    slot = store.spare_slot()  # as an enrollment does
    store.clear(slot)
    store.write_key(slot, b"another key")
    aside.replace(used.key_file)
    assert store.current() == used
    used.key_file.unlink()
    another = put(store, "another")
    store.promote(another)
    assert (store.pair(), store.slots()[used.slot]) == ((another, None), "empty")


def test_a_predecessor_never_comes_back(home: Path) -> None:
    """Killed between the switch and the erasure: the old pair is whole, and older."""
    store = IdentityStore(home)
    store.promote(put(store, "1"))
    kept = shutil.copytree(home / "slot-a", home / "kept")
    store.promote(put(store, "2"))
    (home / "slot-a").rmdir()
    kept.rename(home / "slot-a")
    assert serial_of(store.current()) == "2"
    assert store.candidate() is None
    assert store.slots() == {"slot-a": "old", "slot-b": "current"}
    store.promote(put(store, "3"))
    assert serial_of(store.current()) == "3"


@pytest.mark.parametrize("name", ["cert.pem", "meta.json"])
def test_what_was_written_is_read_back(home: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A disk that takes a write and keeps something else is found out before the server's certificate is relied on."""
    store = IdentityStore(home)
    store.promote(put(store, "1"))
    whole = write_atomically

    def lossy(path: Path, data: bytes, checkpoint: Callable[[str], None]) -> None:
        whole(path, data[:-1] if path.name == name else data, checkpoint)

    monkeypatch.setattr(identity_store, "write_atomically", lossy)
    with pytest.raises(StoreDamaged, match="cannot be read back"):
        put(store, "2")
    assert store.candidate() is None
    assert serial_of(store.current()) == "1"


def test_a_certificate_needs_its_key(home: Path) -> None:
    store = IdentityStore(home)
    info = CertificateInfo("cam-7", "1", "fp", "CN=test", BEGIN, END)
    (home / "slot-a").mkdir()
    with pytest.raises(StoreDamaged, match="no key"):
        store.complete("slot-a", b"certificate", info)
    assert list((home / "slot-a").iterdir()) == []


def test_only_what_is_still_whole_becomes_current(home: Path) -> None:
    store = IdentityStore(home)
    store.promote(put(store, "1"))
    candidate = put(store, "2")
    candidate.certificate_file.write_bytes(b"another")
    with pytest.raises(StoreDamaged, match="no longer complete"):
        store.promote(candidate)
    assert serial_of(store.current()) == "1"


def test_a_file_as_large_as_allowed_is_read(home: Path) -> None:
    store = IdentityStore(home)
    store.write_key("slot-a", b"k" * (64 * 1024))
    assert store.unfinished_key("slot-a") == b"k" * (64 * 1024)
    store.write_key("slot-a", b"k" * (64 * 1024 + 1))
    assert store.unfinished_key("slot-a") is None


def test_clearing_leaves_no_draft(home: Path) -> None:
    store = IdentityStore(home)
    store.clear("slot-b")  # one that was never used
    store.write_key("slot-b", b"key")
    (home / "slot-b" / ".cert.pem.new").write_bytes(b"half")
    assert store.slots()["slot-b"] == "incomplete"
    store.clear("slot-b")
    assert list((home / "slot-b").iterdir()) == []
    assert store.slots()["slot-b"] == "empty"


# Killed at every step


def each_death(folder: Path, *serials: str) -> list[Path]:
    """A home for each step that a renewal can die at, in the state in which it was left."""
    command = [sys.executable, "-m", "tests.device_agent.store.dying", str(folder), *serials]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[3])
    *deaths, survived = sorted(folder.iterdir(), key=lambda home: int(home.name.rpartition(" ")[2]))
    assert serial_of(IdentityStore(survived).current()) == "2"
    return deaths


def test_killed_at_any_step_of_a_renewal(home: Path) -> None:
    homes = each_death(home, "1")
    assert len(homes) > 20
    for victim in homes:
        store = IdentityStore(victim)
        current, candidate = store.current(), store.candidate()
        assert current is not None
        assert is_usable(current)
        assert serial_of(current) in ("1", "2")
        if serial_of(current) == "1" and (victim / "proven").exists():
            # The server may have dropped certificate 1 already: certificate 2 must be there, to be tried first.
            assert candidate is not None
            assert serial_of(candidate) == "2"
            assert is_usable(candidate)
        if serial_of(current) == "2":
            assert candidate is None
        # And life goes on.
        following = put(store, "3")
        assert store.current() == current
        store.promote(following)
        assert serial_of(store.current()) == "3"
        assert is_usable(following)


def test_killed_at_any_step_of_a_first_enrollment(home: Path) -> None:
    for victim in each_death(home):
        store = IdentityStore(victim)
        for identity in (store.current(), store.candidate()):
            assert identity is None or is_usable(identity)
        if (victim / "proven").exists():
            assert serial_of(store.current() or store.candidate()) == "2"
        usable = store.current() or store.candidate()
        if usable is not None:
            store.promote(usable)
        store.promote(put(store, "3"))
        assert serial_of(store.current()) == "3"


def test_power_lost_at_any_step_with_files_emptied(home: Path) -> None:
    """The disk may also lose what was never synced: drafts are emptied, which is the worst a file system does."""

    for victim in each_death(home, "1"):
        for draft in victim.glob("slot-*/.*.new"):
            draft.write_bytes(b"")
        store = IdentityStore(victim)
        current = store.current()
        assert current is not None
        assert is_usable(current)
        assert SLOTS[0] in store.slots()
        store.promote(put(store, "3"))
        assert serial_of(store.current()) == "3"
