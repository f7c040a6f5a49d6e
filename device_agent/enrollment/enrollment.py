"""Enrollment in a child process: the job, its outcome, and the process. Standard library only."""

import contextlib
import json
import os
import signal
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, Self

from device_agent.child_process import ChildProcess
from device_agent.store.bootstrap import bootstrap_of
from device_agent.store.key_store import without_provider
from fleet.est_client.arguments import AGENT_KEY_TYPES

OUTCOME_SIZE_MAX = 16 * 1024  # bytes of JSON from the child
END_SECONDS_MAX = 5.0  # from a child's answer to its end
LATE_SECONDS = 5.0  # behind the deadline that a child enforces itself, so that its message is received
TOOK_TOO_LONG = "The enrollment took too long and was stopped."
DEADLINE_SECONDS = 120.0  # for one enrollment: 202 and 503 waits included


@dataclass(frozen=True, slots=True)
class EnrollmentJob:
    home: Path
    operation: Literal["enroll", "reenroll", "recover", "window", "report"]
    """recover: enroll with the bootstrap credential in the home."""
    token: str = field(default="", repr=False)
    key_type: str = AGENT_KEY_TYPES[0]
    replaces: str = ""
    """Fingerprint of a useless candidate that a renewal may overwrite; of "window": of the certificate in question."""
    renews: str = ""
    """Fingerprint of the certificate that was current when the renewal was decided."""
    deadline_seconds: float = DEADLINE_SECONDS
    patience_seconds: float | None = None
    """For the waits that the server asks for; None for the default."""
    files: tuple[str, str] | None = None
    """Certificate chain and key, PEM, to enroll with: a manufacturer's, or a claim's."""
    label: str = ""
    """The requested model, if the device is not registered yet."""
    answers: str = ""
    """Of "report": the command that it answers, `id`, `name` and `outcome`, as JSON."""

    def to_json(self) -> str:
        return json.dumps(asdict(self) | {"home": str(self.home)})

    @classmethod
    def from_json(cls, text: str) -> Self:
        tree = json.loads(text)
        files = tuple(tree["files"]) if tree["files"] else None
        return cls(**(tree | {"home": Path(tree["home"]), "files": files}))


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of a job. If `ok`, a candidate is in `slot`; otherwise `message` gives the reason.

    Of "window": `window` is the suggested start and end in ISO 8601, () if there is none; `slot` is the fingerprint of
    the certificate in question.
    """

    ok: bool
    slot: str = ""
    message: str = ""
    advice: str = ""
    refused: bool = False
    """The server refused: a retry with the same credentials fails again."""
    code: str = ""
    """The fleet's code for a refusal, as certificate-revoked; "" if the server gives none."""
    ended: bool = False
    """The server refused to renew this certificate, and always will."""
    retry_after_seconds: float = 0.0
    window: tuple[str, ...] = ()
    pending: bool = False
    """The server has accepted the request, which awaits a manual decision."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))


class EnrollmentProcess:
    """A running child. When `fileno()` is readable, call `read`, until it returns an Outcome."""

    def __init__(self, job: EnrollmentJob) -> None:
        # To present a key in a file, as of a manufacturer's certificate, OpenSSL must not have loaded the provider.
        environment = without_provider(job.home, os.environ) if _has_files(job) else None
        self._child = ChildProcess("device_agent.enroll_child", job.to_json(), OUTCOME_SIZE_MAX, environment)

    def fileno(self) -> int:
        return self._child.fileno()

    def read(self) -> Outcome | None:
        """The Outcome, once the child has closed its output."""
        return self._finished() if self._child.has_answered() else None

    def kill(self) -> Outcome:
        """Kill it."""
        self._child.kill()
        self._child.answer = b""
        return self._finished(TOOK_TOO_LONG)

    def _finished(self, message: str = "") -> Outcome:
        code = self._child.wait(END_SECONDS_MAX)
        try:
            return Outcome(**json.loads(self._child.answer))
        except (ValueError, TypeError):
            return Outcome(ok=False, message=message or _cause(code))


@dataclass(slots=True)
class EnrollmentChild:
    """At most one such process at a time, which is killed when it is late. One that cannot be started, as where there
    is no memory or no process left, has failed. `monotonic`: seconds."""

    monotonic: Callable[[], float]
    new_process: Callable[[EnrollmentJob], EnrollmentProcess]
    process: EnrollmentProcess | None = None
    _until: float = 0.0
    _not_started: Outcome | None = None

    @property
    def running(self) -> bool:
        """Until its outcome has been read."""
        return self.process is not None or self._not_started is not None

    def start(self, job: EnrollmentJob) -> None:
        """Start a process for `job`."""
        try:
            self.process = self.new_process(job)
        except OSError as error:
            self._not_started = Outcome(ok=False, message=f"No process could be started: {error.strerror}.")
        self._until = self.monotonic() + job.deadline_seconds + LATE_SECONDS

    def read(self) -> Outcome | None:
        """The process's outcome, once it has ended."""
        outcome, self._not_started = self._not_started, None
        if self.process is not None:
            outcome = self.process.read()
        if outcome is None and self.process and self.monotonic() >= self._until:
            outcome = self.process.kill()
        if outcome is not None:
            self.process = None
        return outcome

    def stop(self) -> None:
        """Kill the process, if any. The next one continues what it left unfinished."""
        if self.process is not None:
            self.process.kill()
        self.process = self._not_started = None


def _has_files(job: EnrollmentJob) -> bool:
    bootstrap = bootstrap_of(job.home) if job.operation == "recover" else None
    return job.files is not None or (bootstrap is not None and bootstrap.files is not None)


def _cause(code: int) -> str:
    """Why a child ended without an answer, by its exit code; negative: a signal."""
    if code == -signal.SIGALRM:
        return TOOK_TOO_LONG  # its own deadline
    if code >= 0:
        return (
            f"The enrollment process failed without an answer, with exit code {code}: its error is in the agent's log."
        )
    with contextlib.suppress(ValueError):
        name = signal.Signals(-code).name
        hint = ", perhaps because this machine has no memory left" if name == "SIGKILL" else ""
        return f"The enrollment process was ended by {name}{hint}."
    return f"The enrollment process was ended by signal {-code}."


def enroll_and_wait(job: EnrollmentJob) -> Outcome:
    """Run one job to its end. Blocks."""
    process = EnrollmentProcess(job)
    os.set_blocking(process.fileno(), True)
    while (outcome := process.read()) is None:
        pass
    return outcome
