"""The agent's own short-lived processes: Python modules that get one job on their input, and answer on their output."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping


def module_command(module: str) -> list[str]:
    """The command that runs `module` in a new interpreter like this one.

    -P: no module in the working directory may shadow one of ours. -W: warnings of libraries are hidden, unless this
    interpreter shows them.
    """
    warnings = [f"-W{option}" for option in sys.warnoptions or ["ignore"]]
    return [sys.executable, "-P", *warnings, "-m", module]


class ChildProcess:
    """A running child. When `fileno()` is readable, call `has_answered`, until it is true; then, or before, `close`.

    With `outlives_us=False` the child's input stays open, and closes with us: it ends then. It is in a session of its
    own, which is killed with all that it has started.
    """

    def __init__(
        self,
        module: str,
        job: str,
        answer_size_max: int,
        environment: Mapping[str, str] | None = None,
        *,
        outlives_us: bool = True,
    ) -> None:
        self._process = subprocess.Popen(
            module_command(module),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=not outlives_us,
            bufsize=0,
            env=environment,
        )
        assert self._process.stdin  # noqa: S101
        assert self._process.stdout  # noqa: S101
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self._answer_size_max = answer_size_max
        self._has_session = not outlives_us
        self.answer = b""
        with contextlib.suppress(BrokenPipeError):
            self._stdin.write(job.encode() + b"\n")  # far below the pipe's 64 KB: does not block
        if outlives_us:
            self._stdin.close()
        os.set_blocking(self.fileno(), False)

    def fileno(self) -> int:
        return self._stdout.fileno()

    def has_answered(self) -> bool:
        """Whether it has closed its output, or written more than it may; `answer` is what it wrote."""
        try:
            data = os.read(self.fileno(), self._answer_size_max)
        except BlockingIOError:
            return False
        self.answer = (self.answer + data)[: self._answer_size_max + 1]
        return not data or len(self.answer) > self._answer_size_max

    def close(self) -> None:
        """Let it end. It is not waited for: subprocess reaps it."""
        self._stdin.close()
        self._stdout.close()
        self._process.poll()

    def kill(self) -> None:
        """Kill it, as while it is stuck in a write to a file system that does not answer."""
        with contextlib.suppress(ProcessLookupError):
            if self._has_session:
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()
        self.close()

    def wait(self, seconds: float) -> int:
        """Its exit code, negative for a signal. One that has not ended in time is killed."""
        self.close()
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
