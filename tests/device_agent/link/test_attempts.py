"""The count of failures over restarts."""

from pathlib import Path

import pytest

from device_agent.link.attempts import COUNTED_MAX, FILE_NAME, Attempts

FIRST, SECOND = "a" * 64, "b" * 64


def test_a_start_counts_until_a_connection_is_stable(tmp_path: Path) -> None:
    assert [Attempts(tmp_path).begin([FIRST]) for _ in range(4)] == [0, 1, 2, 3]
    attempts = Attempts(tmp_path)
    attempts.begin([FIRST])
    attempts.succeeded()
    assert Attempts(tmp_path).begin([FIRST]) == 0


def test_the_failure_of_the_first_attempt_counts_once(tmp_path: Path) -> None:
    attempts = Attempts(tmp_path)
    attempts.begin([FIRST])
    attempts.failed()
    assert Attempts(tmp_path).failures == 1


def test_a_new_certificate_is_no_retry_and_a_candidate_beside_it_changes_nothing(tmp_path: Path) -> None:
    Attempts(tmp_path).begin([FIRST])
    assert Attempts(tmp_path).begin([SECOND, FIRST]) == 1
    assert Attempts(tmp_path).begin([SECOND]) == 0


def test_the_disk_is_written_a_few_times_in_an_outage_of_any_length(tmp_path: Path) -> None:
    attempts = Attempts(tmp_path)
    attempts.begin([FIRST])
    seen = set()
    for _ in range(1000):
        attempts.failed()
        seen.add((tmp_path / FILE_NAME).stat().st_ino)
    assert attempts.failures == COUNTED_MAX
    assert len(seen) <= COUNTED_MAX + 1


@pytest.mark.parametrize("text", [b"", b"x", b"-1 " + b"a" * 16, b"9" * 400, b"1\n", b"5 " + b"a" * 15, "٣ ".encode()])
def test_a_file_that_cannot_be_read_counts_nothing(tmp_path: Path, text: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(text)
    assert Attempts(tmp_path).failures == 0


def test_what_was_refused_for_good_is_known_after_a_restart(tmp_path: Path) -> None:
    attempts = Attempts(tmp_path)
    attempts.begin([FIRST])
    attempts.failed(ended=True)
    for _ in range(2):
        again = Attempts(tmp_path)
        again.begin([FIRST])
        assert again.ended
    again.failed()
    assert not Attempts(tmp_path).ended
    again.failed(ended=True)
    Attempts(tmp_path).begin([SECOND])
    assert not Attempts(tmp_path).ended


def test_a_file_that_is_cut_anywhere_is_no_error(tmp_path: Path) -> None:
    Attempts(tmp_path).begin([FIRST])
    whole = (tmp_path / FILE_NAME).read_bytes()
    for length in range(len(whole) + 1):
        (tmp_path / FILE_NAME).write_bytes(whole[:length])
        assert Attempts(tmp_path).failures == (1 if length == len(whole) else 0)


def test_where_it_cannot_be_written_it_still_counts(tmp_path: Path) -> None:
    attempts = Attempts(tmp_path / "missing")
    attempts.begin([FIRST])
    attempts.failed()
    assert attempts.failures == 1
    (tmp_path / f".{FILE_NAME}.new").symlink_to("/etc/nowhere")
    Attempts(tmp_path).begin([FIRST])
    assert not (tmp_path / FILE_NAME).exists()
