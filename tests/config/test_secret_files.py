"""A file with a secret is read by its owner's grace alone, and never whole when it is large."""

import os
from pathlib import Path

import pytest

from fleet.config.secret_files import ExposedFile, first_line, read_secret
from fleet.config.small_files import LargeFile


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (made := tmp_path / "a secret").touch(mode=0o600)
    made.write_bytes(b"12345678")
    return made


def test_it_is_read(file: Path) -> None:
    assert read_secret(file, 8) == b"12345678"


@pytest.mark.parametrize("content", [b"s:1", b"s:1\n", b"s:1\r\n", b"s:1\nmore", b"s:1\r\nmore\n"])
def test_its_first_line(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    assert first_line(file, 20) == b"s:1"
    with pytest.raises(LargeFile):
        first_line(file, 2)


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


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    special = tmp_path / kind
    if kind == "pipe":
        os.mkfifo(special, 0o600)
    elif kind == "device":
        special.symlink_to("/dev/zero")
    else:
        special.mkdir(0o700)
    with pytest.raises(OSError, match="not a regular file"):
        read_secret(special, 7)


def test_an_editors_mark_is_no_part_of_a_secret(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbfs:1\r\n")
    assert first_line(file, 20) == b"s:1"
    for encoded in ("s:1".encode("utf-16"), b"\xfe\xff" + "s:1".encode("utf-16-be")):
        file.write_bytes(encoded)
        with pytest.raises(OSError, match="UTF-16 text; save it as UTF-8"):
            first_line(file, 20)
    file.write_bytes(b"\xff\xfes:1")  # bytes that a password may have
    assert first_line(file, 20) == b"\xff\xfes:1"
