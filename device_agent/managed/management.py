"""Carries out the fleet's commands, one after the other, and answers each by a report, which a child process signs.

A command is done once: its id is remembered, over restarts too, and a renewal that was asked for before the certificate
in use began has been done.
"""

import json
import math
from collections import deque
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Protocol

from device_agent.apps.inbound import Inbound
from device_agent.config.topics import filter_for
from device_agent.enrollment.enrollment import EnrollmentChild, EnrollmentJob, EnrollmentProcess
from device_agent.enrollment.rotation import OnRenewed
from device_agent.link.clock import DeviceClock
from device_agent.log.event_log import EventLog
from device_agent.log.folding import FoldedEvents
from device_agent.managed.commands import (
    LEVELS,
    LOG_LEVEL,
    RENEW,
    TOPIC,
    Command,
    CommandRefused,
    read_command,
)
from device_agent.managed.done_commands import DoneCommands
from device_agent.packets import Received
from device_agent.store.identity_store import Identity

OK = "ok"
RENEW_SECONDS_MIN = 60.0  # between two renewals by command: each costs the CA a certificate, and the flash a slot
DEADLINE_SECONDS = 60.0  # for one report
ANSWERS_MAX = 8  # that wait for the one that is sent
TOO_MANY = "too many reports wait"


class Agent(Protocol):
    """The interface of the agent that its management needs."""

    device_id: str
    home: Path
    inbound: Inbound
    clock: DeviceClock
    monotonic: Callable[[], float]
    stopping: bool

    @property
    def current(self) -> Identity | None: ...
    def force_renewal(self, on_renewed: OnRenewed) -> None: ...


class Management:
    """Call `start` once, and `tick` at every turn of the loop. `child` is readable when a report has been sent."""

    uid = 0
    """Its subscription is the agent's own."""

    def __init__(self, agent: Agent, log: EventLog) -> None:
        self._agent = agent
        self._log = log
        self._refusals = FoldedEvents(log, agent.monotonic)
        self._topic = filter_for(TOPIC, agent.device_id)
        self._done = DoneCommands(agent.home)
        self._answers: deque[tuple[Command, str]] = deque()
        self._renewed_at = -math.inf
        self.child = EnrollmentChild(agent.monotonic, lambda job: EnrollmentProcess(job))

    def start(self) -> None:
        """Subscribe, now and after each new session."""
        self._agent.inbound.hear(self._topic, self._take)
        self._agent.inbound.subscriptions.hold(self._topic, 1, self, self._on_subscribed)

    def tick(self) -> None:
        """Take a report's outcome, and start the next one."""
        self._refusals.tick()
        if (outcome := self.child.read()) is not None:
            if outcome.ok:
                self._log.event("report-sent")
            else:
                self._log.event("report-failed", reason=outcome.message)
        if not self.child.running and self._answers and not self._agent.stopping:
            self._start(*self._answers.popleft())

    def stop(self) -> None:
        """Kill the child, if any."""
        self._refusals.tick(end=True)
        self.child.stop()

    def refused(self, topic_filter: str, reason: str) -> None:
        """The server refuses the subscription from now on."""
        self._on_subscribed(reason)

    def _on_subscribed(self, reason: str) -> None:
        if reason:
            self._log.event("command-subscription-refused", topic=self._topic, reason=reason)

    def _take(self, message: Received) -> None:
        reading = self._agent.clock.reading()
        try:
            command = read_command(message, reading.now if reading.is_set else None)
            if command.id in self._done or self._agent.stopping:
                return
            if self._done.is_older(command.at):
                raise CommandRefused("it is older than commands that have been done and forgotten")
            if len(self._answers) >= ANSWERS_MAX:
                raise CommandRefused(TOO_MANY)
        except CommandRefused as refused:
            self._refusals.event("command-refused", str(refused), topic=message.topic)
            return
        self._remember(command)
        self._log.event("command-accepted", command=command.name, id=command.id)
        if command.name == RENEW:
            self._renew(command)
            return
        if command.name == LOG_LEVEL:
            self._log.least = LEVELS[command.level]
        self._answer(command, OK)

    def _remember(self, command: Command, renewed_at: datetime | None = None) -> None:
        try:
            self._done.add(command.id, command.at, renewed_at)
        except OSError as error:  # on a disk that cannot be written, it is remembered until the next start
            self._log.event("command-not-stored", id=command.id, reason=error.strerror)

    def _renew(self, command: Command) -> None:
        current, now, wall = self._agent.current, self._agent.monotonic(), self._agent.clock.reading().now
        if current is not None and command.at < current.lifetime.not_before:
            self._answer(command, OK)
            return
        since, before = now - self._renewed_at, self._done.renewed_at
        if math.isinf(since) and before is not None and before <= wall:  # of an earlier run
            since = (wall - before).total_seconds()
        if since < RENEW_SECONDS_MIN:
            left = math.ceil(RENEW_SECONDS_MIN - since)
            last = f"The last renewal by command was less than {RENEW_SECONDS_MIN:.0f} s ago"
            self._answer(command, f"{last}. Ask again in {left} s.")
            return
        self._renewed_at = now
        self._remember(command, wall)
        self._agent.force_renewal(lambda message, _: self._answer(command, message or OK))

    def _answer(self, command: Command, outcome: str) -> None:
        if len(self._answers) >= ANSWERS_MAX:
            self._refusals.event("report-failed", TOO_MANY, id=command.id)
            return
        self._answers.append((command, outcome))

    def _start(self, command: Command, outcome: str) -> None:
        answered = {"id": command.id, "name": command.name, "outcome": outcome}
        job = EnrollmentJob(self._agent.home, "report", answers=json.dumps(answered), deadline_seconds=DEADLINE_SECONDS)
        self.child.start(job)
