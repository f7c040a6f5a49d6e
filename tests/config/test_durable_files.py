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
