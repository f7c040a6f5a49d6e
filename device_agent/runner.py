"""The long-lived agent: an event loop that gathers a View, calls `core.decide`, and carries out the Decision.

Single-threaded, except for the blocking part of a connect. Enrollment runs in a child process.
"""

import os
import select
import shlex
import time
from collections.abc import Callable

from device_agent import core
from device_agent.agent_config import AgentConfig
from device_agent.atomic_files import held_lock
from device_agent.connection import Connection, ConnectionEvent, Down, ProofFailed, Proven, Up
from device_agent.control_handlers import ControlHandlers
from device_agent.control_server import ControlServer
from device_agent.core import Link, Phase, Role, Setback
from device_agent.enrollment import EnrollmentJob, Outcome
from device_agent.errors import AgentError, NotEnrolled
from device_agent.event_log import Clock, EventLog, system_clock
from device_agent.identities import Identities
from device_agent.identity_store import Identity, IdentityStore
from device_agent.mqtt_link import Acknowledged
from device_agent.outbox import Outbox
from device_agent.publisher import PublishInput, publish_waiting, take_lines
from device_agent.renewal_schedule import RenewalSchedule
from device_agent.rotation import PROMOTE_RETRY_SECONDS, QUIESCING_SECONDS_MAX, OnRenewed, Rotation
from device_agent.signals import RENEW_SIGNAL, STOP_SIGNALS, Waker
from fleet.est_client.errors import ClientError
from fleet.est_client.validity import Lifetime

LOCK_NAME = "agent.lock"
DRAIN_SECONDS_MAX = 4.0  # for acknowledgements, after SIGTERM
LOOP_SECONDS_MAX = 5.0  # between two checks of the keep-alive
DECISIONS_MAX = 16  # in one turn of the loop: more would mean that two of them undo each other


def _chance() -> float:
    return int.from_bytes(os.urandom(6)) / 2**48


class Runner:
    """Call `run` or `renew_once` once. `chance` draws a number in [0, 1)."""

    def __init__(
        self,
        config: AgentConfig,
        log: EventLog,
        source: PublishInput | None = None,
        *,
        clock: Clock = system_clock,
        monotonic: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = _chance,
    ) -> None:
        self.device_id = config.device_id
        self._config = config
        self._log = log
        self._input = source
        self._clock = clock
        self._monotonic = monotonic
        self._chance = chance
        self._identities = Identities(IdentityStore(config.home), monotonic)
        self.outbox = Outbox(config.outbox_messages_max)
        self._wakeup = Waker()
        self.connection = Connection(config, self._wakeup.wake, monotonic, chance)
        self.rotation = Rotation(config.refused_retry_seconds, chance, monotonic)
        self.phase = Phase.SERVING
        self.schedule = RenewalSchedule(
            config.home, config.renew_at_fraction, chance, monotonic, refused_seconds=config.refused_retry_seconds
        )
        self.last_error = ""
        self._stop_by: float | None = None
        self._answers = ControlHandlers(self)

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT, or the end of the input. 0 if every accepted message was delivered, else 1.

        Raises: Busy if an agent runs in this home already; NotEnrolled; OSError.
        """
        self._serve(self._is_finished)
        outbox = self.outbox
        self._log.event("stopped", delivered=outbox.delivered, undelivered=len(outbox), refused=outbox.refused)
        return 1 if len(outbox) or outbox.refused else 0

    def renew_once(self) -> None:
        """Renew, prove the new certificate by a connection, and return.

        Raises: AgentError if that failed, with the working certificate unchanged; Busy; NotEnrolled; OSError.
        """
        outcome: list[tuple[str, str]] = []
        self.force_renewal(lambda message, advice: outcome.append((message, advice)))
        self._serve(lambda: bool(outcome) or self._stop_by is not None)
        message, advice = outcome[0]
        if message:
            raise AgentError(message, advice)

    def _serve(self, is_finished: Callable[[], bool]) -> None:
        lock = held_lock(self._config.home / LOCK_NAME, "An agent is already running in this home.")
        with lock, self._wakeup.catching_signals():
            self._identities.refresh()
            if self.current is None and self._candidate is None:
                raise NotEnrolled(
                    "This device has no certificate yet.",
                    f"Run: device-agent --home {shlex.quote(str(self._config.home))} enroll.",
                )
            control = ControlServer(self._config.home, self._answers.handlers())
            self._log.event("started", device=self.device_id, pid=os.getpid())
            try:
                while not is_finished():
                    seconds = self._decide_until_wait()
                    if is_finished():
                        break  # by a decision
                    self._turn(control, seconds)
            finally:
                self.rotation.stop()
                self.schedule.stop()
                self.rotation.answer_waiting("The agent was stopped.", "")
                self.connection.close()
                control.close()
                self._wakeup.close()

    def _turn(self, control: ControlServer, seconds: float) -> None:
        if self._input and self._stop_by is None:
            take_lines(self._input, self.outbox, self.device_id, self._log)
        if self.phase is Phase.SERVING:
            # Nothing is published while a candidate is being proven: the server moves the session from the old
            # connection to the new, and an acknowledgement lost in that moment would cause a duplicate.
            publish_waiting(self.outbox, self.connection, self._log)
        ready = self._poll(control, seconds)
        for link in self.connection.links:
            if link.socket is not None and (events := ready.get(link.socket.fileno())):
                link.handle_io(bool(events & ~select.POLLOUT), bool(events & select.POLLOUT))
        if self._wakeup.descriptor in ready:
            self._wakeup.clear()
        self._take_signals()
        if self._input and self._input.lines.descriptor in ready:
            self._input.lines.read()
        control.handle(ready)
        if (outcome := self.rotation.read()) is not None:
            self._after_enrollment(outcome)
        if suggestion := self.schedule.read():
            self._log.event("renewal-suggested", at=suggestion)
        for event in self.connection.collect():
            self._after(event)

    def _poll(self, control: ControlServer, seconds: float) -> dict[int, int]:
        # A new poll object each turn: with ten descriptors it costs nothing, and none can be stale.
        poll = select.poll()
        watched = control.watched() | {self._wakeup.descriptor: select.POLLIN}
        for link in self.connection.links:
            if link.socket is not None:
                watched[link.socket.fileno()] = select.POLLIN | (select.POLLOUT if link.wants_write else 0)
        if self.rotation.process is not None:
            watched[self.rotation.process.fileno()] = select.POLLIN
            seconds = min(seconds, 1.0)
        if self.schedule.process is not None:
            watched[self.schedule.process.fileno()] = select.POLLIN
        source = self._input
        if source and self._stop_by is None and not source.lines.at_end and not self.outbox.is_full:
            watched[source.lines.descriptor] = select.POLLIN
        for descriptor, events in watched.items():
            poll.register(descriptor, events)
        return dict(poll.poll(min(seconds, LOOP_SECONDS_MAX) * 1000 + 1))

    # Decisions

    def _decide_until_wait(self) -> float:
        self._identities.refresh_if_due()
        if self.current is not None and self._stop_by is None and not self.rotation.running:
            self.schedule.poll_if_due(self.current)
        for _ in range(DECISIONS_MAX):
            self.connection.follow(self.current, self._candidate)
            self.rotation.follow(self.current, self._candidate)
            decision = core.decide(self._view(), self._clock(), self._monotonic())
            if isinstance(decision, core.Wait):
                return decision.seconds
            self._do(decision)
        return 1.0

    def _view(self) -> core.View:
        connection, rotation = self.connection, self.rotation
        return core.View(
            current=self.current.lifetime if self.current else None,
            candidate=self._candidate.lifetime if self._candidate and not self.stopping else None,
            link=connection.state,
            link_uses=connection.uses,
            phase=self.phase,
            in_flight=self.outbox.in_flight,
            renewing=rotation.running,
            renewal_due=self._renewal_is_due(),
            renewal_forced=rotation.forced,
            candidate_refused=rotation.candidate_refused or self._is_renewable_instead(),
            last_tried=connection.last_tried,
            connect_at=connection.connect_at,
            connecting_until=connection.connecting_until,
            renew_at=rotation.renew_at,
            prove_at=rotation.prove_at,
            quiescing_until=rotation.quiescing_until,
            promote_at=rotation.promote_at,
        )

    def _is_renewable_instead(self) -> bool:
        """Whether the server refuses both certificates, and has said since that the current one can be renewed."""
        # Then the candidate has never been used: that would have superseded the current one. Both may be distrusted.
        since = self.connection.both_refused_since
        return since is not None and self.current is not None and self.schedule.was_renewable(self.current, since)

    def _renewal_is_due(self) -> bool:
        if self.current is None or self._stop_by is not None:
            return False
        return self.schedule.is_due(self.current, self._clock())

    def _do(self, decision: core.Decision) -> None:
        match decision:
            case core.Connect(role=role, check_time=check_time):
                self._connect(role, check_time)
            case core.HangUp():
                self._after(self.connection.hang_up("the server did not answer in time"))
            case core.Renew():
                self._log.event("renewing")
                useless = self._candidate.certificate.fingerprint if self._candidate else ""
                self.rotation.start(EnrollmentJob(self._config.home, "reenroll", replaces=useless))
            case core.Quiesce():
                self.phase = Phase.QUIESCING
                self.rotation.quiescing_until = self._monotonic() + QUIESCING_SECONDS_MAX
            case core.Prove(check_time=check_time):
                self._prove(check_time)
            case core.AbandonProof():
                self._abandon_proof()
            case core.Promote():
                self._promote()
            case core.Wait():
                pass

    def _connect(self, role: Role, check_time: bool) -> None:
        identity = self._candidate if role is Role.CANDIDATE else self.current
        if identity is None:
            return
        if not check_time:
            self._log.event("clock-not-set", now=self._clock().isoformat(), note="dates are not checked")
        try:
            self.connection.connect(identity, role, check_time)
        except ClientError as error:
            self._after(self.connection.failed_to_start(error))

    def _prove(self, check_time: bool) -> None:
        self.phase = Phase.PROVING
        if self._candidate is None:
            self.phase = Phase.SERVING
            return
        try:
            self.connection.prove(self._candidate, check_time)
        except ClientError as error:
            self._after(ProofFailed(Setback.NETWORK, error.message))

    def _abandon_proof(self) -> None:
        proving = self.phase is Phase.PROVING
        self.connection.drop_proof()
        if proving:
            reason = "the server did not answer in time"
        elif self.connection.state is Link.UP:
            reason = "the server did not acknowledge in time what had been sent"
        else:
            self.phase = Phase.SERVING  # the next connection tries the candidate first, and reports the outcome
            return
        self._after(ProofFailed(Setback.NETWORK, reason))

    def _promote(self) -> None:
        if self._candidate is None:
            return
        try:
            self._identities.promote()
        except (ClientError, OSError) as error:
            self.last_error = f"the switch to the new certificate was not stored: {error}"
            self._log.event("promote-failed", reason=error)
            self.rotation.promote_at = self._monotonic() + PROMOTE_RETRY_SECONDS
            return
        if self.current is not None:
            info = self.current.certificate
            self._log.event("renewed", slot=self.current.slot, serial=info.serial, not_after=info.not_after.isoformat())

    # Events of the connection and of the child process

    def _after(self, event: ConnectionEvent) -> None:
        match event:
            case Acknowledged(packet_id=packet_id, failure=failure):
                if failure:
                    self._log.event("message-refused", reason=failure)
                self.outbox.acknowledged(packet_id, failure)
            case Up(session_present=session_present):
                self._came_up(session_present)
            case Down():
                self._went_down(event)
            case Proven():
                self.phase = Phase.SERVING
                self._came_up(session_present=True)
            case ProofFailed(setback=setback, reason=reason):
                self.phase = Phase.SERVING
                refused = setback is Setback.REFUSED and self.connection.state is Link.UP
                if self.current is not None:
                    self.rotation.proof_failed(
                        f"The new certificate did not work: {reason}.", refused=refused, lifetime=self.current.lifetime
                    )
                self.last_error = reason
                self._log.event("proof-failed", setback=setback, reason=reason)

    def _came_up(self, session_present: bool) -> None:
        self.last_error = ""
        self._log.event(
            "connected",
            slot=self.connection.identity.slot if self.connection.identity else "",
            protocol=self.connection.protocol_name,
            session=("kept" if session_present else "new"),
        )
        self._answers.connected()

    def _went_down(self, event: Down) -> None:
        self.outbox.connection_lost()
        if event.handed_over:
            return
        self.last_error = event.reason
        if event.setback is Setback.REFUSED and self.connection.last_tried is Role.CURRENT:
            self.schedule.refused()
        name = "disconnected" if event.was_up else "connect-failed"
        self._log.event(name, setback=event.setback, reason=event.reason, retry_seconds=round(event.retry_seconds, 1))
        if self.connection.last_tried is Role.CANDIDATE and self._candidate is not None:
            self.rotation.answer_waiting(
                f"The new certificate is stored, but could not be proven yet: {event.reason}.",
                "The next connection tries it again.",
            )

    def _after_enrollment(self, outcome: Outcome) -> None:
        before = self.current
        self._identities.refresh()
        # Current already, if another process had stored it, and has promoted it since.
        received = self._candidate or (self.current if self.current != before else None)
        if outcome.ok and received is not None:
            self._log.event("certificate-received", slot=received.slot)
            return
        if outcome.ok:
            outcome = Outcome(ok=False, message="The new certificate is not in its slot.")
        lifetime = self.current.lifetime if self.current else Lifetime(self._clock(), self._clock())
        wait = self.rotation.fetch_failed(outcome, lifetime, self._clock())
        self.last_error = outcome.message
        self._log.event("renewal-failed", reason=outcome.message, refused=outcome.refused, retry_seconds=round(wait, 1))

    # Interface of the control handlers

    @property
    def current(self) -> Identity | None:
        return self._identities.current

    @property
    def _candidate(self) -> Identity | None:
        return self._identities.candidate

    @property
    def stopping(self) -> bool:
        return self._stop_by is not None

    @property
    def renewal_due_at(self) -> str | None:
        return self.schedule.due_at(self.current).isoformat() if self.current is not None else None

    def look_for_candidate(self) -> bool:
        """Whether there is a certificate to prove; another process may have stored it, or a new current one."""
        self._identities.refresh()
        if self._candidate is None:
            return False
        self.rotation.fetched()
        return True

    def force_renewal(self, on_renewed: OnRenewed | None) -> None:
        """Renew now, and report the outcome. A candidate that has not been tried yet is proven instead."""
        self.rotation.force(on_renewed)
        if self._candidate is not None and not self.rotation.candidate_refused:
            self.rotation.forced = False
            if self.connection.state is Link.DOWN:
                self.connection.connect_at = 0.0

    # Signals and shutdown

    def _take_signals(self) -> None:
        signals = self._wakeup.signals()
        if RENEW_SIGNAL in signals:
            self.force_renewal(None)
        if signals & STOP_SIGNALS and self._stop_by is None:
            self._stop_by = self._monotonic() + DRAIN_SECONDS_MAX
            if self.phase is Phase.QUIESCING:
                self.phase = Phase.SERVING  # queued messages go first; the candidate is kept for the next start
            self._log.event("stopping", undelivered=len(self.outbox))

    def _is_finished(self) -> bool:
        idle = len(self.outbox) == 0 and not any(link.wants_write for link in self.connection.links)
        if self._stop_by is not None:
            return idle or self.connection.state is not Link.UP or self._monotonic() >= self._stop_by
        source = self._input
        return bool(source and source.stop_at_end and source.lines.at_end and not source.lines.has_line and idle)
