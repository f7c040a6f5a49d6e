"""Files that are written whole or not at all, and what they may take the place of."""

import os
import socket
from pathlib import Path

import pytest

from fleet.config.durable_files import write_file


@pytest.mark.parametrize("kind", ["fifo", "link to a fifo", "socket"])
def test_force_replaces_no_device_pipe_or_socket(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "out"
    with socket.socket(socket.AF_UNIX) as listener:
        if kind == "socket":
            listener.bind(os.path.relpath(path))
        else:
            os.mkfifo(tmp_path / "fifo" if kind == "link to a fifo" else path)
            if kind == "link to a fifo":
                path.symlink_to(tmp_path / "fifo")
        before = path.lstat()
        with pytest.raises(OSError, match="not a regular file"):
            write_file(path, b"new", secret=True, force=True)
    assert os.path.samestat(path.lstat(), before)
    assert not list(tmp_path.glob(".out*"))


def test_force_replaces_a_file(tmp_path: Path) -> None:
    (path := tmp_path / "out").write_bytes(b"old")
    write_file(path, b"new", secret=True, force=True)
    assert path.read_bytes() == b"new"
    with pytest.raises(FileExistsError):
        write_file(path, b"newer", secret=True)
    assert path.read_bytes() == b"new"


def test_an_error_names_the_file_that_was_asked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        write_file(tmp_path / "away" / "x.pem", b"", secret=False)
    assert caught.value.filename == str(tmp_path / "away" / "x.pem")


OTHER = 12345  # a user and a group that nobody here is


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone can give files away")
@pytest.mark.parametrize(
    ("owner", "group", "mode", "taken"),
    [
        (0, 0, 0o755, True),
        (0, 0, 0o775, True),  # a group of our own
        (0, 0, 0o1777, True),  # as /tmp
        (0, OTHER, 0o775, False),
        (0, OTHER, 0o755, True),
        (0, 0, 0o777, False),
        (OTHER, 0, 0o700, False),
        (OTHER, 0, 0o1777, False),
    ],
)
def test_a_secret_goes_into_no_folder_that_others_may_change(
    tmp_path: Path, owner: int, group: int, mode: int, taken: bool
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    os.chown(folder, owner, group)
    folder.chmod(mode)
    write_file(folder / "root.pem", b"public", secret=False)
    if taken:
        write_file(folder / "key", b"secret", secret=True)
    else:
        with pytest.raises(PermissionError, match="others may write"):
            write_file(folder / "key", b"secret", secret=True)
    assert (folder / "key").exists() is taken
