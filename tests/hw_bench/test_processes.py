"""Child processes: pinned at birth, and gone at the end."""

import os
import select
import sys
from pathlib import Path

import pytest

from hw_bench.cpu_time import process_tree
from hw_bench.processes import BenchError, Cores, accepts, free_port, on_cores, pick_cores, running, wait_until

# A server with a child that ignores SIGTERM, as a careless one may have; it says "ready" when both are there.
CARELESS = """
import signal, subprocess, sys
child = subprocess.Popen(
    [sys.executable, "-c", "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); "
     "signal.pause()"], stdout=subprocess.PIPE, start_new_session=True)
child.stdout.readline()
print("ready", flush=True)
signal.pause()
"""


def test_what_is_started_on_a_core_stays_there(tmp_path: Path) -> None:
    core = max(os.sched_getaffinity(0))
    before = os.sched_getaffinity(0)
    with running(["sleep", "100"], cores=(core,), log=tmp_path / "log") as process:
        assert os.sched_getaffinity(process.pid) == {core}
    assert os.sched_getaffinity(0) == before


def test_two_cores_when_there_are_two() -> None:
    allowed = sorted(os.sched_getaffinity(0))
    assert pick_cores() == Cores((allowed[0],), (allowed[min(1, len(allowed) - 1)],))
    with on_cores(allowed[0]):
        one = pick_cores()
    assert one == Cores((allowed[0],), (allowed[0],))
    assert not one.apart


def test_cores_apart_and_together() -> None:
    apart = Cores((0,), (1,))
    assert apart.apart
    assert apart.together() == Cores((0, 1), (0, 1))
    assert not apart.together().apart


def test_nothing_is_left_of_a_server_and_its_children(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with running([sys.executable, "-c", CARELESS], cores=tuple(os.sched_getaffinity(0)), log=log) as process:
        wait_until(lambda: b"ready" in log.read_bytes(), "the server", process, log)
        family = [os.pidfd_open(pid) for pid in process_tree((process.pid,))]
        assert len(family) == 2
    ended, _, _ = select.select(family, [], [], 0)
    assert ended == family
    for handle in family:
        os.close(handle)


def test_nothing_is_left_when_the_block_fails(tmp_path: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        running(["sleep", "100"], cores=tuple(os.sched_getaffinity(0)), log=tmp_path / "log") as process,
    ):
        raise KeyboardInterrupt
    assert process.returncode is not None


def test_a_server_that_ends_at_once_is_quoted(tmp_path: Path) -> None:
    log = tmp_path / "log"
    argv = [sys.executable, "-c", "raise SystemExit('no such port')"]
    with (
        running(argv, cores=tuple(os.sched_getaffinity(0)), log=log) as process,
        pytest.raises(BenchError, match="the server ended with exit code 1: no such port"),
    ):
        wait_until(lambda: False, "the server", process, log)


def test_nobody_listens_on_a_free_port() -> None:
    assert not accepts(("127.0.0.1", free_port()))
