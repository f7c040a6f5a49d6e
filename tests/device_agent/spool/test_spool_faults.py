"""A spool whose file is cut, garbage, full, read-only or killed: never an exception, and no stored message is lost."""

import os
import shutil
import signal
import sqlite3
import sys
from pathlib import Path
from subprocess import PIPE, Popen

import pytest

from device_agent.packets import Extras
from device_agent.spool.database import DAMAGED_NAME, FILE_NAME
from device_agent.spool.line_reader import LineReader
from device_agent.spool.message_queue import Message
from device_agent.spool.outbox import Bounds, Outbox
from device_agent.spool.publisher import PublishInput, take_lines
from device_agent.spool.rejected import shown
from tests.device_agent.spool_parts import Kept, deliver
from tests.small_files import files_of_at_most
from tests.tiers import Tier

TEXTS = [f"{number}-{'x' * 300}" for number in range(12)]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a spool with TEXTS: some in the file itself, the later ones in its log."""
    home = tmp_path_factory.mktemp("stored")
    (home / "a").mkdir()
    kept = Kept(home / "a")
    kept.put(*TEXTS[:6])
    kept.spool.close()
    kept = Kept(home / "a")
    for text in TEXTS[6:]:
        kept.put(text)
    shutil.copytree(home / "a", home / "b")
    kept.spool.close()
    assert {file.name for file in (home / "b").iterdir()} == {FILE_NAME, f"{FILE_NAME}-wal"}
    return home / "b"


def is_in_order(sent: list[str]) -> bool:
    return sent == [text for text in TEXTS if text in sent]


def opened(stored: Path, home: Path, name: str, data: bytes) -> Kept:
    """A spool of the files in `stored`, but with this `data` in the one of this name."""
    shutil.rmtree(home, ignore_errors=True)
    shutil.copytree(stored, home)
    (home / name).write_bytes(data)
    return Kept(home)


def check(kept: Kept, least: int = 0) -> int:
    """It delivers what is left in order, and takes new messages; how many were left."""
    sent = deliver(kept.outbox)
    assert is_in_order(sent), sent
    assert len(sent) >= least
    assert kept.put("new") == [""]
    assert deliver(kept.outbox) == ["new"]
    kept.spool.close()
    return len(sent)


@pytest.mark.parametrize("name", [FILE_NAME, f"{FILE_NAME}-wal"])
def test_a_file_cut_anywhere_loses_the_end_and_harms_nothing(
    stored: Path, tmp_path: Path, tier: Tier, name: str
) -> None:
    data = (stored / name).read_bytes()
    step = tier.times(9973, all=61)
    # Pages; in the log, frames: a page behind 24 bytes, from byte 32 on.
    ends = range(0, len(data), 4096) if name == FILE_NAME else range(32, len(data), 24 + 4096)
    cuts = {0, 1, 16, 100, 4096, *range(0, len(data), step), len(data) - 1}
    cuts |= {end + beside for end in ends if end for beside in (-1, 0, 1)} - {len(data) + 1}
    left = {cut: check(opened(stored, tmp_path / "home", name, data[:cut])) for cut in sorted(cuts)}
    if name != FILE_NAME:  # what reached the file is there, however the log ends; and each whole commit of the log
        assert min(left.values()) == 6
        assert sorted(left.values()) == [left[cut] for cut in sorted(cuts)]
        assert left[len(data) - 1] == 11


def test_every_byte_of_a_record_may_be_wrong(stored: Path, tmp_path: Path, tier: Tier) -> None:
    checkpointed = tmp_path / "whole"
    shutil.copytree(stored, checkpointed)
    Kept(checkpointed).spool.close()
    data = (checkpointed / FILE_NAME).read_bytes()
    start = data.index(TEXTS[3].encode()) - 60
    for place in range(start, start + 400, tier.times(67, all=1)):
        wrong = bytearray(data)
        wrong[place] ^= 0x41
        kept = opened(checkpointed, tmp_path / "home", FILE_NAME, bytes(wrong))
        check(kept)
        status = kept.spool.status()
        assert status["spool"] == "on"


def test_a_torn_page_is_moved_aside_and_the_rest_is_saved(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    texts = [f"{number:04}" + "x" * 996 for number in range(200)]
    kept.put(*texts)
    kept.spool.close()
    data = bytearray((tmp_path / FILE_NAME).read_bytes())
    place = data.index(texts[100].encode()) // 4096 * 4096
    data[place : place + 4096] = os.urandom(4096)
    (tmp_path / FILE_NAME).write_bytes(data)
    kept = Kept(tmp_path)
    sent = deliver(kept.outbox)
    assert sent == [text for text in texts if text in sent]
    assert len(sent) >= 90
    assert kept.put("new") == [""]
    assert kept.spool.status()["spool_damaged"] == 1
    assert (tmp_path / DAMAGED_NAME).read_bytes()[place : place + 4096] == data[place : place + 4096]
    assert "spool-damaged kept_as=spool.damaged.db" in kept.log.getvalue()
    assert deliver(kept.outbox) == ["new"]


@pytest.mark.parametrize("garbage", [b"garbage" * 999, b"\0" * 8192, b"SQLite format 3\0" + b"\xff" * 5000])
def test_garbage_is_moved_aside_and_named(tmp_path: Path, garbage: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(garbage)
    kept = Kept(tmp_path)
    assert kept.put("x") == [""]
    assert (tmp_path / DAMAGED_NAME).read_bytes() == garbage
    kept.spool.close()
    (tmp_path / FILE_NAME).write_bytes(b"garbage again")
    assert Kept(tmp_path).put("x") == [""]
    assert (tmp_path / DAMAGED_NAME).read_bytes() == b"garbage again"  # one, so that the disk does not fill


def test_an_empty_file_is_a_new_spool_and_a_foreign_one_is_moved_aside(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).touch()
    kept = Kept(tmp_path)
    assert kept.put("x") == [""]
    kept.spool.close()
    assert not (tmp_path / DAMAGED_NAME).exists()
    with sqlite3.connect(tmp_path / FILE_NAME) as foreign:
        foreign.execute("PRAGMA user_version = 99")
    foreign.close()
    assert Kept(tmp_path).put("y") == [""]
    assert (tmp_path / DAMAGED_NAME).exists()


@pytest.mark.parametrize("place", ["directory", "link"])
def test_what_is_no_file_is_a_problem_and_nothing_more(tmp_path: Path, place: str) -> None:
    if place == "directory":
        (tmp_path / FILE_NAME).mkdir()
    else:
        (tmp_path / FILE_NAME).symlink_to(tmp_path / "elsewhere")
    kept = Kept(tmp_path)
    [answer] = kept.put("x")
    assert "spool.db cannot be used" in answer
    assert kept.outbox.next_to_send(1) is None
    assert kept.spool.status()["spool"] != "on"
    (tmp_path / FILE_NAME).rmdir() if place == "directory" else (tmp_path / FILE_NAME).unlink()
    assert kept.put("x") == [""]  # at once, with no restart
    assert not (tmp_path / "elsewhere").exists()


def test_on_a_full_disk_messages_are_refused_and_the_stored_ones_are_delivered(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    kept.put(*TEXTS)
    rejected = kept.outbox.next_to_send(1)
    assert rejected is not None
    with files_of_at_most((tmp_path / f"{FILE_NAME}-wal").stat().st_size):
        [answer] = kept.put("x" * 100_000)
        assert "cannot be used" in answer
        assert kept.outbox.is_full  # an input that can wait does
        kept.outbox.sent(rejected, 1)
        kept.outbox.acknowledged(1, "Not authorized")
        assert deliver(kept.outbox, 5) == TEXTS[1:6]
        kept.time.passed += 60
        kept.spool.commit()
    kept.time.passed += 60
    assert kept.put("after") == [""]
    assert not kept.outbox.is_full
    kept.spool.close()
    again = Kept(tmp_path)
    assert deliver(again.outbox) == [*TEXTS[6:], "after"]


def test_a_full_disk_has_room_again_once_messages_are_delivered(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    kept.put(*["x" * 3000] * 100)
    kept.spool.close()
    kept = Kept(tmp_path)
    deliver(kept.outbox)
    with files_of_at_most((tmp_path / FILE_NAME).stat().st_size + 65536):
        for number in range(60):  # the log is full again and again, and is emptied into the file
            assert kept.put(f"{number:03}" + "x" * 3000) == [""] or kept.put(f"{number:03}" + "x" * 3000) == [""]
            assert len(deliver(kept.outbox)) == 1
            kept.time.passed += 6
        assert kept.put("y" * 3000) == [""]
    kept.crash()
    assert deliver(Kept(tmp_path).outbox) == ["y" * 3000]


def test_on_a_read_only_disk_the_stored_ones_are_delivered(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    kept.put(*TEXTS)
    assert kept.spool.database is not None
    connection = kept.spool.database.reader()
    assert connection is not None
    connection.execute("PRAGMA query_only = ON")
    [answer] = kept.put("x")
    assert "readonly" in answer
    assert deliver(kept.outbox) == TEXTS


def test_lines_of_an_input_wait_for_the_disk(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    reader, writer = os.pipe()
    source = PublishInput(LineReader(reader), "t")
    os.write(writer, b"".join(b"%d-%s\n" % (number, b"x" * 2000) for number in range(20)))
    os.close(writer)
    with files_of_at_most((tmp_path / f"{FILE_NAME}-wal").stat().st_size):
        source.lines.read()
        take_lines(source, kept.outbox, "cam-7", None)  # type: ignore[arg-type]
        kept.spool.commit()
        assert len(source.returned) == 20
        take_lines(source, kept.outbox, "cam-7", None)  # type: ignore[arg-type]
        assert len(source.returned) == 20
    source.lines.read()
    kept.time.passed += 6
    take_lines(source, kept.outbox, "cam-7", None)  # type: ignore[arg-type]
    kept.spool.commit()
    assert source.at_end
    assert [text.partition("-")[0] for text in deliver(kept.outbox)] == [str(number) for number in range(20)]
    os.close(reader)


def test_a_line_without_room_waits_and_is_not_refused(tmp_path: Path) -> None:
    outbox = Outbox(100, Bounds(size_max=1000))
    reader, writer = os.pipe()
    source = PublishInput(LineReader(reader), "t")
    os.write(writer, b"x" * 600 + b"\n" + b"y" * 600 + b"\nz\n")
    os.close(writer)
    source.lines.read()
    for expected in ("x" * 600, "y" * 600):
        take_lines(source, outbox, "cam-7", None)  # type: ignore[arg-type]
        assert not source.at_end
        assert deliver(outbox, 1) == [expected]
    take_lines(source, outbox, "cam-7", None)  # type: ignore[arg-type]
    assert deliver(outbox) == ["z"]
    assert (source.lines.refused, outbox.dropped) == (0, 0)
    os.close(reader)


# The child stores batches of one, two, three ... messages, and says so on its standard output after each commit.
CHILD = """
import sys
from pathlib import Path
from tests.device_agent.spool_parts import Kept
kept, number, size = Kept(Path(sys.argv[1])), 0, 1
print("open", flush=True)
while True:
    kept.put(*[str(each) for each in range(number, number + size)])
    number, size = number + size, size % 7 + 1
    print(number, flush=True)
    if number % 3 == 0 and (message := kept.outbox.next_to_send(10**6)):
        kept.outbox.sent(message, number)
"""


def test_what_was_answered_survives_sigkill(tmp_path: Path, tier: Tier) -> None:
    for round_ in range(tier.times(2, all=90)):
        home = tmp_path / str(round_)
        home.mkdir()
        child = Popen([sys.executable, "-c", CHILD, home], stdout=PIPE, text=True)
        assert child.stdout is not None
        answered = 0
        for _ in range(2 + round_ * 7 % 90):
            line = child.stdout.readline().strip()
            answered = int(line) if line != "open" else 0
        child.send_signal(signal.SIGKILL)
        rest = child.stdout.read().split()
        child.wait()
        child.stdout.close()
        answered = int(rest[-1]) if rest else answered
        sent = deliver(Kept(home).outbox)
        assert sent == [str(number) for number in range(len(sent))]
        assert len(sent) >= answered


@pytest.mark.parametrize("number", [2**63 - 1, 2**62 + 1, 0, -(2**63)])
@pytest.mark.parametrize("table", ["outgoing", "rejected", "incoming"])
def test_a_row_of_a_number_that_is_never_given_is_set_aside(tmp_path: Path, number: int, table: str) -> None:
    """The next message would get the number after it, which SQLite does not have."""
    kept = Kept(tmp_path)
    kept.put("1", "2", "3")
    kept.spool.close()
    with sqlite3.connect(tmp_path / FILE_NAME) as other:
        if table != "outgoing":
            other.execute("INSERT INTO TABLE_ SELECT * FROM outgoing WHERE row = 1".replace("TABLE_", table))
        other.execute("UPDATE TABLE_ SET row = ? WHERE row = 1".replace("TABLE_", table), (number,))
    other.close()
    for _ in range(2):  # a start, and the next one
        kept = Kept(tmp_path)
        assert kept.put("new") == [""]
        assert deliver(kept.outbox)[-1:] == ["new"]
        assert len(kept.outbox) == 0
        kept.spool.close()
    assert (tmp_path / DAMAGED_NAME).exists()


@pytest.mark.parametrize("at", [9e99, -9e99, float("inf")])
def test_a_row_of_a_time_that_is_none_is_left_out(tmp_path: Path, at: float) -> None:
    kept = Kept(tmp_path)
    kept.put("1", "2")
    kept.spool.close()
    with sqlite3.connect(tmp_path / FILE_NAME) as other:
        other.execute("UPDATE outgoing SET at = ? WHERE row = 1", (at,))
        other.execute("INSERT INTO rejected SELECT * FROM outgoing")
    other.close()
    kept = Kept(tmp_path)
    assert [shown(entry)["size"] for entry in kept.outbox.rejected.entries()] == [1] * len(kept.outbox.rejected)
    assert deliver(kept.outbox)[-1:] == ["2"]


def test_a_row_of_another_kind_is_left_out(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    kept.outbox.put(Message("t", b"1", extras=Extras(user=(("a", "b"),))))
    kept.put("2", "3")
    kept.spool.close()
    with sqlite3.connect(tmp_path / FILE_NAME) as other:
        other.execute("UPDATE outgoing SET payload = NULL WHERE row = 1")
        other.execute("UPDATE outgoing SET payload = 'text' WHERE row = 2")
    other.close()
    kept = Kept(tmp_path)
    assert deliver(kept.outbox) == ["3"]
    assert kept.spool.status()["spool_damaged"] == 2
    assert len(kept.outbox) == 0
