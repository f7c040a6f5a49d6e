"""The logs of the servers that tests start: a test that fails shows how they end, and where the whole of them is.

Logs that go to a file are found by themselves; who reads a server's output line by line adds it with `add`.
"""

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LINES_SHOWN = 30


@dataclass(frozen=True)
class Log:
    title: str
    read: Callable[[], str]
    running: Callable[[], bool]


_logs: list[Log] = []


def add(title: str, read: Callable[[], str], running: Callable[[], bool]) -> None:
    _logs.append(Log(title, read, running))


def add_file(title: str, file: Path, running: Callable[[], bool]) -> None:
    add(f"{title}, in {file}", lambda: file.read_text(errors="replace"), running)


def forget_ended() -> None:
    """A server that has ended before a test begins has nothing to say about it."""
    _logs[:] = [log for log in _logs if log.running()]


def ends() -> Iterator[tuple[str, str]]:
    """Title and last lines of each log."""
    for log in _logs:
        try:
            lines = log.read().splitlines()
        except OSError as error:
            lines = [str(error)]
        yield f"log of {log.title}", "\n".join(lines[-LINES_SHOWN:])


def watch_processes() -> None:
    """From now on every process whose output goes to a file has its log added."""
    start = subprocess.Popen.__init__

    def start_and_add(process: "subprocess.Popen[Any]", args: Any, *rest: Any, **options: Any) -> None:
        start(process, args, *rest, **options)
        names = {getattr(options.get(stream), "name", None) for stream in ("stdout", "stderr")}
        for name in names:
            if isinstance(name, str | Path):
                words = [args] if isinstance(args, str | bytes | Path) else list(args)
                title = " ".join(Path(str(word)).name for word in words[:5])
                add_file(title, Path(name), lambda: process.returncode is None)

    subprocess.Popen.__init__ = start_and_add  # type: ignore[assignment]
