"""CPU time as the operating system tells it."""

import os
import subprocess
import sys

import pytest

from hw_bench.cpu_time import (
    TICKS_PER_SECOND,
    CoreTime,
    core_times,
    cpu_seconds,
    parse_core_times,
    parse_process_stat,
    process_time,
    process_tree,
)

STAT = "77 (a (very) odd) name) S 12 77 77 0 -1 4194560 1 2 3 4 150 50 25 75 20 0 1 0 4711 1000 200"
# Burns a fixed amount of CPU, says so, and stays until its standard input closes.
BURN = "import sys\nfor _ in range(3_000_000): pass\nprint('done', flush=True)\nsys.stdin.read()"
# The same one generation further down.
BURN_BELOW = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {BURN!r}])"


def test_a_stat_line_with_parentheses_in_the_name() -> None:
    time = parse_process_stat(STAT)
    assert (time.pid, time.parent) == (77, 12)
    assert time.seconds == 300 / TICKS_PER_SECOND  # its own 150 + 50, its ended children's 25 + 75


@pytest.mark.parametrize("line", ["", "77 no parentheses", "77 (short) S 1 2 3", "x (y) " + "S " * 30])
def test_what_is_no_stat_line_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_process_stat(line)


def test_core_times_tell_processes_from_interrupts_from_idleness() -> None:
    text = "cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 100 20 30 400 50 6 7 8 0 0\ncpu11 1 2 3 4 5 6 7 8 0 0\nintr 1 2 3\n"
    times = parse_core_times(text)
    assert sorted(times) == [0, 11]
    assert times[0].processes == pytest.approx(150 / TICKS_PER_SECOND)
    assert times[0].kernel == pytest.approx(21 / TICKS_PER_SECOND)
    assert times[0].idle == pytest.approx(450 / TICKS_PER_SECOND)


def test_share_busy_of_an_interval() -> None:
    interval = CoreTime(13.0, 2.0, 15.0).since(CoreTime(10.0, 1.0, 11.0))
    assert interval == CoreTime(3.0, 1.0, 4.0)
    assert interval.share_busy == 0.5
    assert CoreTime(0.0, 0.0, 0.0).share_busy == 0.0


def test_this_machine_has_the_cores_that_it_has() -> None:
    assert set(core_times()) >= os.sched_getaffinity(0)


@pytest.mark.parametrize("program", [BURN, BURN_BELOW])
def test_cpu_time_of_a_process_and_of_what_it_has_started(program: str) -> None:
    child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == b"done\n"
        assert cpu_seconds((child.pid,)) >= 2 / TICKS_PER_SECOND
        assert child.pid in process_tree((os.getpid(),))
    finally:
        child.stdin.close()
        child.stdout.close()
        child.wait()
    assert process_time(child.pid) is None
    assert cpu_seconds((child.pid,)) == 0
