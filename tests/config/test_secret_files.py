"""A file with a secret is read by its owner's grace alone, and never whole when it is large."""

from pathlib import Path

import pytest

from fleet.config.secret_files import ExposedFile, LargeFile, read_secret


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (made := tmp_path / "a secret").touch(mode=0o600)
    made.write_bytes(b"12345678")
    return made


def test_it_is_read(file: Path) -> None:
    assert read_secret(file, 8) == b"12345678"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o601])
def test_one_that_others_may_use_is_refused(file: Path, mode: int) -> None:
    file.chmod(mode)
    with pytest.raises(ExposedFile, match="a secret can be read by others") as caught:
        read_secret(file, 8)
    assert caught.value.advice == f"Run: chmod 600 '{file}'"


def test_the_mode_is_that_of_the_file_behind_a_link(file: Path, tmp_path: Path) -> None:
    (link := tmp_path / "link").symlink_to(file)
    assert read_secret(link, 8) == b"12345678"
    file.chmod(0o644)
    with pytest.raises(ExposedFile):
        read_secret(link, 8)


def test_a_larger_one_and_a_missing_one(file: Path, tmp_path: Path) -> None:
    with pytest.raises(LargeFile):
        read_secret(file, 7)
    with pytest.raises(FileNotFoundError):
        read_secret(tmp_path / "none", 7)
