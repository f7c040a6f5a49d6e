"""Demo harness: a temporary home, and the programs that a step starts, calls and waits for.

Every program runs as a process, started as from a shell. Nothing is left behind unless `--keep` is given.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PATIENCE_SECONDS = 30.0  # for any single wait; everything is local
STOP_SECONDS = 6.0

FLEET = ("-m", "fleet")
AGENT = ("-m", "device_agent")
STATION = ("-m", "firmware_tools.station_cli")


class StepFailed(Exception):
    """A step failed. The message states what was expected and what was observed."""


Finished = subprocess.CompletedProcess[str]


class Running:
    """A background program whose standard error is read line by line."""

    patience_seconds = PATIENCE_SECONDS
    stop_seconds = STOP_SECONDS

    def __init__(self, name: str, process: subprocess.Popen[str]) -> None:
        self.name = name
        self.process = process
        self.lines: list[tuple[float, str]] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, name=f"read {name}", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None  # noqa: S101 - start() opens it
        for line in self.process.stderr:
            with self._changed:
                self.lines.append((time.monotonic(), line.rstrip("\n")))
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def wait_for(self, wanted: Callable[[str], bool], what: str, since: int = 0) -> float:
        """The monotonic time at which a line with `wanted`, counted from line `since`, was read.

        Raises: StepFailed: it did not appear in time, or the program exited.
        """
        deadline = time.monotonic() + self.patience_seconds
        seen = since
        with self._changed:
            while True:
                for at, line in self.lines[seen:]:
                    if wanted(line):
                        return at
                seen = max(seen, len(self.lines))
                left = deadline - time.monotonic()
                if left <= 0 or not self._reader.is_alive():
                    last = self.lines[-1][1] if self.lines else "nothing"
                    raise StepFailed(f"{self.name} never said {what}; its last line: {last}")
                self._changed.wait(min(left, 1.0))

    def say(self, text: str) -> None:
        """Write a line to the program's standard input."""
        assert self.process.stdin is not None  # noqa: S101 - start() opens it
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def stop(self) -> int:
        """Send SIGTERM, then SIGKILL if needed; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(self.stop_seconds)
            except subprocess.TimeoutExpired:
                self.process.kill()
        code = self.process.wait()
        self._reader.join(self.stop_seconds)
        for stream in (self.process.stdin, self.process.stderr):
            if stream is not None:
                stream.close()
        return code


@dataclass(slots=True)
class Stage:
    """One run of the demo: its folder and its running programs."""

    root: Path
    upstream: str
    """The broker behind the gateway, as an argument of `fleet serve --upstream`, with its socket in the home."""
    running: dict[str, Running] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        return self.root / "home"

    def device_home(self, device_id: str) -> Path:
        return self.root / "devices" / device_id

    def ready(self) -> dict[str, Any]:
        """The ready file's content."""
        content: dict[str, Any] = json.loads((self.root / "ready.json").read_text())
        return content

    def call(self, program: Sequence[str], *words: str, give: str | None = None, expect: int | None = 0) -> Finished:
        """Run a program to completion. Raises: StepFailed: its exit code is not `expect` (None: any)."""
        done = subprocess.run(
            [sys.executable, *program, *words],
            input=give,
            stdin=subprocess.DEVNULL if give is None else None,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS * 2,
            env=self._environment(),
            check=False,
        )
        if expect is not None and done.returncode != expect:
            said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:] or ["nothing"]
            raise StepFailed(f"`{' '.join((program[-1], *words[:3]))}` ended with {done.returncode}: {said[0]}")
        return done

    def start(self, name: str, program: Sequence[str], *words: str) -> Running:
        """Start a program in the background, with pipes for its standard input and error."""
        log = self.root / "logs"
        log.mkdir(exist_ok=True)
        with (log / f"{name}.out").open("ab") as out:
            process = subprocess.Popen(
                [sys.executable, *program, *words],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.PIPE,
                text=True,
                env=self._environment(),
                start_new_session=True,
            )
        self.running[name] = Running(name, process)
        return self.running[name]

    def wait_for_file(self, file: Path, writer: Running) -> None:
        """Return when `file` exists. Raises: StepFailed: it does not appear in time, or its writer has exited."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not file.exists():
            if writer.process.poll() is not None or time.monotonic() > deadline:
                last = writer.lines[-1][1] if writer.lines else "nothing"
                raise StepFailed(f"{writer.name} did not get ready; its last line: {last}")
            time.sleep(0.01)

    def close(self) -> None:
        """Stop all programs in reverse order of start."""
        for running in reversed(self.running.values()):
            running.stop()
        self.running.clear()

    def _environment(self) -> dict[str, str]:
        environment = dict(os.environ, FLEET_HOME=str(self.home), PYTHONUNBUFFERED="1")
        for name in ("PYTHONWARNINGS", "FLEET_DATABASE"):  # the demo's registry is in its own home
            environment.pop(name, None)
        return environment
