"""A forked program is what an executed one is: arguments, streams, environment, signals, exit code."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.forks import Forked, fork_or_execute, write_script
from tests.waiting import PATIENCE_SECONDS


def ended(module: str, *words: str, give: str = "", **options: Any) -> tuple[int, str, str]:
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Forked(module, *words, **{**streams, **options}) as process:
        stdout, stderr = process.communicate(give, timeout=PATIENCE_SECONDS)
    return process.returncode, stdout, stderr


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Forked]:
    """A program that waits for what it is given."""
    with Forked("code", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_exit_code_and_streams() -> None:
    assert ended("json.tool", give='{"a":1}') == (0, '{\n    "a": 1\n}\n', "")
    code, stdout, stderr = ended("json.tool", give="{")
    assert (code, stdout) == (1, "")
    assert stderr
    assert ended("fleet", "nonesuch")[0] == 2


def test_a_module_that_is_not_there() -> None:
    code, _, stderr = ended("fleet.nonesuch")
    assert code == 1
    assert "fleet.nonesuch" in stderr


def test_environment_and_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("here.json").write_text("[]")
    assert ended("json.tool", "here.json") == (0, "[]\n", "")
    code, _, stderr = ended("fleet", "device", "list", env={**os.environ, "FLEET_HOME": "/nonesuch"})
    assert code == 1
    assert "/nonesuch" in stderr


def test_a_stream_that_is_a_file(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w") as out:
        assert ended("json.tool", give="[]", stdout=out)[0] == 0
    assert (tmp_path / "out").read_text() == "[]\n"
    assert ended("json.tool", stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT)[0] == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_signal_that_ends_it(running: Forked, number: signal.Signals) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        running.wait(0.01)
    assert running.poll() is None
    running.send_signal(number)
    assert running.wait(PATIENCE_SECONDS) == running.poll() == -number
    running.send_signal(number)  # it has ended: nothing is sent


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    script = tmp_path / "fleet"
    write_script(script, "fleet.cli:main")
    return script


def test_a_script_is_found_by_its_name(fleet: Path, tmp_path: Path) -> None:
    words = ["sh", "-c", "fleet nonesuch; echo $?; fleet --version | wc -l"]
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.split() == ["2", "1"]
    assert done.stderr.startswith("Usage: fleet [OPTIONS] COMMAND")


def test_a_script_hands_signals_on_and_takes_its_program_along(tmp_path: Path) -> None:
    script = tmp_path / "waits"
    write_script(script, "code:interact")
    for number in (signal.SIGTERM, signal.SIGKILL):
        with subprocess.Popen([script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("import os; print(os.getpid(), flush=True)\n")
            process.stdin.flush()
            program = os.pidfd_open(int(process.stdout.readline().split()[-1]))
            process.send_signal(number)
            assert select.select([program], [], [], 60)[0]
            os.close(program)
        assert process.returncode == -number


def test_a_session_of_its_own_on_our_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", fork_or_execute)
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        words = [sys.executable, "-P", "-Wignore", "-m", "code"]
        process = subprocess.Popen(words, stdin=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    finally:
        os.sched_setaffinity(0, before)
    with process:
        assert isinstance(process, Forked)
        assert process.stderr is not None
        assert process.stderr.readline()  # it runs
        assert os.getsid(process.pid) == process.pid
        assert os.sched_getaffinity(process.pid) == {min(before)}


def test_what_is_no_module_of_ours_is_executed(tmp_path: Path) -> None:
    for words, options in (
        ([sys.executable, "-c", "pass"], {}),
        (["true"], {}),
        ([sys.executable, "-m", "json.tool", "--help"], {"cwd": tmp_path, "stdout": subprocess.DEVNULL}),
    ):
        with fork_or_execute(words, **options) as process:
            assert process.wait(PATIENCE_SECONDS) == 0
        assert not isinstance(process, Forked)


def test_streams_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", fork_or_execute)
    words = [sys.executable, "-m", "json.tool", "--compact"]
    assert subprocess.run(words, input=b"[1]", capture_output=True, check=True).stdout == b"[1]\n"
    assert subprocess.run(words, input="[1]", capture_output=True, check=True, text=True).stdout == "[1]\n"
