"""A wait for what a program does ends with the program, not with the deadline."""

import asyncio
import subprocess
import sys

import pytest

from tests.waiting import until, wait_until

ENDS = (sys.executable, "-ISc", "raise SystemExit(3)")


def test_a_wait_fails_once_the_program_has_ended() -> None:
    with (
        subprocess.Popen(ENDS) as process,
        pytest.raises(AssertionError, match="no socket: the program has ended with 3"),
    ):
        wait_until(lambda: False, "no socket", process)


async def test_so_does_one_in_an_event_loop() -> None:
    process = await asyncio.create_subprocess_exec(*ENDS)
    with pytest.raises(AssertionError, match="the program has ended with 3"):
        await until(lambda: False, process)
