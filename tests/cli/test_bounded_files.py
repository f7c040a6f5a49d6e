"""A file that a command is given is read up to its limit, and no further; a pipe is read to its end."""

import os
import shlex
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fleet.config.small_files import LargeFile, read_argument
from tests.serving import run_agent, run_fleet

WITHOUT_END = "/dev/zero"
MEMORY_MAX = 3_000_000_000  # bytes of address space: a whole file without an end does not fit


@pytest.mark.parametrize(
    "words",
    [
        ("ca", "sign", WITHOUT_END),
        ("ca", "cross-sign", WITHOUT_END),
        ("ca", "crl", "--revoke", WITHOUT_END),
        ("ca", "import", WITHOUT_END),
        (
            "claim",
            "create",
            "batch",
            "--model",
            "default",
            "--quota",
            "1",
            "--expires",
            "1d",
            "--out",
            "made",
            "--csr",
            WITHOUT_END,
        ),
    ],
)
def test_no_argument_is_read_without_end(home: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    limited = f"ulimit -v {MEMORY_MAX >> 10}; exec {shlex.join((sys.executable, '-m', 'fleet', *words))}"
    environment = {**os.environ, "FLEET_HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        ["bash", "-c", limited], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "too large" in done.stderr


def test_nor_is_that_of_an_agent(tmp_path: Path) -> None:
    words = ("--device-id", "cam-1", "--est", "https://e:1", "--mqtt", "m:2", "--ca", WITHOUT_END)
    run_agent(tmp_path / "agent", "init", *words, expect=2)


def test_nor_is_what_stands_where_a_command_writes(home: Path, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").symlink_to(WITHOUT_END)
    run_fleet(home, "operator", "add", "bob", "--role", "viewer", "--out", str(tmp_path), expect=1)


def test_an_argument_may_be_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "pipe")
    content = os.urandom(200_000)
    writing = threading.Thread(target=pipe.write_bytes, args=(content,))
    writing.start()
    assert read_argument(pipe) == content
    writing.join()
    with pytest.raises(LargeFile):
        read_argument(Path(WITHOUT_END))
