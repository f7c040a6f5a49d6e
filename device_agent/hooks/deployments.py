"""Deployment of each certificate that comes into use: when, how often again, and the process that does it.

The hooks run in a child process. Whatever they do, the agent's loop only polls: no hook delays a rotation or the link.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from device_agent.child_process import ChildProcess
from device_agent.config.hooks import Hook
from device_agent.hooks.deployment_marks import (
    Marks,
    failures_of,
    is_due,
    read_marks,
    retry_delay_seconds,
)
from device_agent.log.event_log import EventLog
from device_agent.store.identity_store import Identity

START_SECONDS_MAX = 60.0  # for the process to start, and for copies to reach the disk
BUSY_SECONDS = 10.0  # after another process was deploying
SAID_SIZE_MAX = 1000  # bytes


@dataclass(slots=True)
class Deployments:
    """Mutable, and owned by the executor. Times are monotonic seconds."""

    home: Path
    hooks: tuple[Hook, ...]
    log: EventLog
    chance: Callable[[], float]
    monotonic: Callable[[], float]
    process: ChildProcess | None = None
    _process_until: float = 0.0
    _running: list[str] = field(default_factory=list)
    _fingerprint: str = ""
    """Of the certificate that is being deployed."""
    _retry_at: dict[str, float] = field(default_factory=dict)
    """By the names of hooks that are due."""

    def use(self, hooks: tuple[Hook, ...]) -> None:
        """Take other hooks; those that have not deployed the current certificate do."""
        if hooks != self.hooks:
            self.hooks, self._fingerprint, self._retry_at = hooks, "", {}

    def poll(self, current: Identity | None) -> float:
        """Start what is due, take what has ended, and return the seconds until the next call may do anything."""
        if not self.hooks or current is None:
            return 60.0
        if self.process is not None:
            self._take_end()
        if current.certificate.fingerprint != self._fingerprint:
            self._fingerprint = current.certificate.fingerprint
            self._plan(read_marks(self.home))
        now = self.monotonic()
        if self.process is None and (names := [name for name, at in self._retry_at.items() if now >= at]):
            self._start(names, now)
        if self.process is not None:
            return max(0.0, self._process_until - now)
        return max(0.0, min(self._retry_at.values(), default=now + 60.0) - now)

    def stop(self) -> None:
        """Stop the child, if any: the next agent runs the hook again."""
        if self.process is not None:
            self.process.close()
            self.process = None

    def _start(self, names: list[str], now: float) -> None:
        self._running = [hook.name for hook in self.hooks if hook.name in names]
        self.log.event("hook-started", hooks=",".join(self._running))
        job = json.dumps({"home": str(self.home), "hooks": self._running})
        try:
            self.process = ChildProcess("device_agent.hooks.deploying", job, SAID_SIZE_MAX, outlives_us=False)
        except OSError as error:  # as where there is no memory, or no process left
            self._retry_at |= dict.fromkeys(self._running, now + BUSY_SECONDS)
            for name in self._running:
                self.log.event("hook-failed", hook=name, reason=error.strerror, retry_seconds=BUSY_SECONDS)
            return
        self._process_until = now + START_SECONDS_MAX + sum(hook.timeout_seconds + 5 for hook in self.hooks)

    def _take_end(self) -> None:
        assert self.process  # noqa: S101
        if self.process.has_answered():
            self.process.close()
        elif self.monotonic() < self._process_until:
            return
        else:
            self.process.kill()
        said, self.process = self.process.answer.decode("utf-8", "replace").strip(), None
        marks = read_marks(self.home)
        self._plan(marks)
        for hook in self.hooks:
            mark = marks.get(hook.name)
            if hook.name not in self._running:
                continue
            if mark is not None and mark.ok and mark.digest == hook.digest:
                self.log.event("hook-done", hook=hook.name)
                continue
            at = self._retry_at.setdefault(hook.name, self.monotonic())
            if mark is None or not mark.failures or said:
                at = self._retry_at[hook.name] = max(at, self.monotonic() + BUSY_SECONDS)
            reason = mark.message if mark is not None and mark.failures and not said else said or "it was not tried"
            self.log.event("hook-failed", hook=hook.name, reason=reason, retry_seconds=round(at - self.monotonic(), 1))

    def _plan(self, marks: Marks) -> None:
        now = self.monotonic()
        self._retry_at = {
            hook.name: now + retry_delay_seconds(hook, failures_of(hook, marks, self._fingerprint), self.chance())
            for hook in self.hooks
            if is_due(hook, marks, self._fingerprint)
        }
