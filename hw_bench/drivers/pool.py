"""A pool of driver processes that run the same command."""

import contextlib
import json
import select
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hw_bench.cpu_time import cpu_seconds
from hw_bench.processes import BenchError, on_cores, stop, tail

ANSWER_SECONDS_MAX = 60.0  # beyond the expected time of a command


class DriverPool:
    """`size` processes of `python -m MODULE` on the same cores. A context manager that ends them.

    with DriverPool("hw_bench.drivers.handshake", 3, config, cores=(1,), folder=folder) as pool:
        answers = pool.send({"do": "run", "seconds": 3.0}, seconds=3.0)
    """

    def __init__(
        self, module: str, size: int, config: Mapping[str, Any], *, cores: tuple[int, ...], folder: Path
    ) -> None:
        self._module = module
        self._configs = [{**config, "member": member, "members": size} for member in range(size)]
        self._cores = cores
        self._folder = folder
        self._members: list[subprocess.Popen[bytes]] = []
        self._logs: list[Path] = []

    def __enter__(self) -> Self:
        try:
            for config in self._configs:
                self._members.append(self._start(config))
            self._answers(ANSWER_SECONDS_MAX)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def send(self, command: Mapping[str, Any], seconds: float = 0.0) -> list[dict[str, Any]]:
        """Send `command` to every member and collect the answers; it takes about `seconds`.

        Raises: BenchError when a member fails, ends or times out.
        """
        line = json.dumps(command).encode() + b"\n"
        for member in self._members:
            self._write(member, line)
        return self._answers(seconds + ANSWER_SECONDS_MAX)

    def cpu_seconds(self) -> float:
        """CPU time used by the pool so far."""
        return cpu_seconds(tuple(member.pid for member in self._members))

    def _start(self, config: Mapping[str, Any]) -> "subprocess.Popen[bytes]":
        log = self._folder / f"driver-{len(self._logs)}.log"
        self._logs.append(log)
        with on_cores(*self._cores), log.open("wb") as errors:
            member = subprocess.Popen(
                [sys.executable, "-m", self._module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        self._write(member, json.dumps(config).encode() + b"\n")
        return member

    def _write(self, member: "subprocess.Popen[bytes]", line: bytes) -> None:
        assert member.stdin is not None  # noqa: S101 - started with pipes
        with contextlib.suppress(BrokenPipeError):  # it has ended: reading its answer reports why
            member.stdin.write(line)
            member.stdin.flush()

    def _answers(self, seconds_max: float) -> list[dict[str, Any]]:
        return [self._answer(member, log, seconds_max) for member, log in zip(self._members, self._logs, strict=True)]

    def _answer(self, member: "subprocess.Popen[bytes]", log: Path, seconds_max: float) -> dict[str, Any]:
        assert member.stdout is not None  # noqa: S101 - started with pipes
        if not select.select([member.stdout], [], [], seconds_max)[0]:
            raise BenchError(f"{self._module} did not answer within {seconds_max:.0f} s: {tail(log)}")
        line = member.stdout.readline()
        if not line:
            raise BenchError(f"{self._module} ended: {tail(log)}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise BenchError(f"{self._module}: {answer['error']}")
        return answer

    def _stop(self) -> None:
        for member in self._members:
            for pipe in (member.stdin, member.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()
        for member in self._members:
            stop(member)


def total(answers: Sequence[Mapping[str, Any]], key: str) -> int:
    """The sum of one count over all answers."""
    return sum(int(answer[key]) for answer in answers)
