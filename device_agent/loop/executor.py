"""What the agent does: gathers a View, calls `core.decide`, carries out the Decision, and takes the events that follow.

Single-threaded. Nothing here waits: the loop that polls is the runner's.
"""

from datetime import timedelta
from typing import Literal

from device_agent import core
from device_agent.core import Link, Phase, Role, Setback
from device_agent.enrollment.enrollment import EnrollmentJob, Outcome
from device_agent.enrollment.rotation import PROMOTE_RETRY_SECONDS, QUIESCING_SECONDS_MAX
from device_agent.link.connection import ConnectionEvent, Down, ProofFailed, Proven, Up
from device_agent.link.mqtt_link import Acknowledged
from device_agent.link.network_watch import NetworkChange
from device_agent.loop.agent_state import AgentState
from device_agent.packets import Received, Subscribed
from device_agent.store import last_refusal
from fleet.est_client.errors import ClientError
from fleet.est_client.validity import Lifetime

_LIFETIME_UNKNOWN = timedelta(days=90)  # of the certificate that is lost: paces the attempts to get another
DECISIONS_MAX = 16  # in one turn of the loop: more would mean that two of them undo each other


class Executor(AgentState):
    """The changes of the agent's state."""

    _saves_time = False
    """The dates of the server that is connected were judged by this clock."""

    def take_events(self) -> None:
        """What the child processes and the connections have to report."""
        if (outcome := self.rotation.child.read()) is not None:
            self._learn_time()
            self._after_enrollment(outcome)
        asking = self.schedule.child.running
        if suggestion := self.schedule.read():
            self._log.event("renewal-suggested", at=suggestion)
        if asking and not self.schedule.child.running:
            self._learn_time()
        if self._saves_time and self.connection.is_up:
            self.clock.save()
        for event in self.connection.collect():
            self._after(event)
        self.inbound.tick()
        self.handlers.tick()

    def network_changed(self, change: NetworkChange) -> None:
        """The kernel reports another state of the links or addresses."""
        if (down := self.connection.network_changed(change)) is not None:
            self._after(down)

    def reconnect(self, reason: str) -> None:
        """End the connection, if any, and begin another at once."""
        if self.connection.state is not Link.DOWN:
            self.connection.drop_proof()
            self.phase = Phase.SERVING
            self._after(self.connection.hang_up(reason))
        self.connection.connect_at = 0.0

    # Decisions

    def decide_until_wait(self) -> float:
        """Carry out all that is due, and return the seconds until the next decision."""
        self.identities.refresh_if_due()
        if (identity := self.current or self.candidate) is not None:
            self.clock.own_begin = identity.lifetime.not_before
        seconds = self.deployments.poll(None if self.stopping else self.current)
        if self.current is not None and not self.stopping and not self.rotation.child.running:
            self.schedule.poll_if_due(self.current)
        for _ in range(DECISIONS_MAX):
            self.connection.follow(self.current, self.candidate)
            if self.connection.held_back:
                self.last_error, self.connection.held_back = self.connection.held_back, ""
                self._log.event("connect-delayed", reason=self.last_error, note="signal HUP connects now")
            self.rotation.follow(self.current, self.candidate)
            decision = core.decide(self._view(), self.clock.now(), self.monotonic())
            if isinstance(decision, core.Wait):
                return min(seconds, decision.seconds)
            self._do(decision)
        return 1.0

    def _do(self, decision: core.Decision) -> None:
        self._log.event("decided", action=core.shown(decision))
        match decision:
            case core.Connect(role=role):
                self._connect(role)
            case core.HangUp():
                self._after(self.connection.hang_up("the server did not answer in time"))
            case core.Renew():
                self._log.event("renewing")
                self._start("reenroll")
            case core.Recover():
                self._log.event("enrolling-again", note="with the bootstrap credential")
                self._start("recover")
            case core.Quiesce():
                self.phase = Phase.QUIESCING
                self.rotation.quiescing_until = self.monotonic() + QUIESCING_SECONDS_MAX
            case core.Prove():
                self._prove()
            case core.AbandonProof():
                self._abandon_proof()
            case core.Promote():
                self._promote()

    def _start(self, operation: Literal["reenroll", "recover"]) -> None:
        useless = self.candidate.certificate.fingerprint if self.candidate else ""
        renews = self.current.certificate.fingerprint if self.current else ""
        self.rotation.start(EnrollmentJob(self.home, operation, replaces=useless, renews=renews))

    def _connect(self, role: Role) -> None:
        identity = self.candidate if role is Role.CANDIDATE else self.current
        if identity is None:
            return
        by_system, at = self.clock.judges_dates()
        if not by_system and at is None:
            self._log.event("clock-not-set", now=self.clock.now(), note="dates are not checked")
        self._saves_time = by_system or at is not None
        self.connection.connect(identity, role, by_system, at)

    def _learn_time(self) -> None:
        """A child process may have heard from a server what time it is."""
        before = self.clock.reading().corrected
        self.clock.load()
        if self.clock.reading().corrected and not before:
            self._log.event("clock-corrected", system_ahead_seconds=round(self.clock.skew_seconds()))
            self.connection.retry_now()

    def _prove(self) -> None:
        self.phase = Phase.PROVING
        if self.candidate is None:
            self.phase = Phase.SERVING
            return
        by_system, at = self.clock.judges_dates()
        self.connection.prove(self.candidate, by_system, at)

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
        if self.candidate is None:
            return
        try:
            self.identities.promote()
        except (ClientError, OSError) as error:
            self.last_error = f"the switch to the new certificate was not stored: {error}"
            self._log.event("certificate-switch-failed", reason=error)
            self.rotation.promote_at = self.monotonic() + PROMOTE_RETRY_SECONDS
            return
        if self.current is not None:
            info = self.current.certificate
            self._log.event("renewed", slot=self.current.slot, serial=info.serial, not_after=info.not_after)
            self.handlers.renewed()

    # Events of the connection and of the child process

    def _after(self, event: ConnectionEvent) -> None:
        match event:
            case Acknowledged(packet_id=packet_id, failure=failure, is_temporary=is_temporary):
                if failure:
                    name = "message-postponed" if is_temporary else "message-refused"
                    self._log.event(name, reason=failure, **self.outbox.name_of(packet_id))
                self.outbox.acknowledged(packet_id, failure, is_temporary)
            case Up(session_present=session_present):
                self._came_up(session_present)
            case Down():
                self._went_down(event)
            case Proven(session_present=session_present):
                self.phase = Phase.SERVING
                self._came_up(session_present)
            case Received():
                if self.carries_messages:  # what is not acknowledged, the server sends again
                    self.inbound.received(event)
            case Subscribed():
                self.inbound.subscribed(event)
            case ProofFailed(setback=setback, reason=reason):
                self.phase = Phase.SERVING
                refused = setback.is_refusal and self.connection.state is Link.UP
                if self.current is not None:
                    self.rotation.proof_failed(
                        f"The new certificate did not work: {reason}.", refused=refused, lifetime=self.current.lifetime
                    )
                self.last_error = reason
                self._log.event("new-certificate-failed", cause=setback, reason=reason)

    def _came_up(self, session_present: bool) -> None:
        self.last_error = ""
        last_refusal.forget(self.home)
        self._log.event(
            "connected",
            slot=self.connection.identity.slot if self.connection.identity else "",
            server=self.connection.server,
            protocol=self.connection.protocol_name,
            session=("kept" if session_present else "new"),
        )
        self.inbound.came_up(session_present)
        self.handlers.connected()

    def _went_down(self, event: Down) -> None:
        self.outbox.connection_lost()
        if event.handed_over:
            return
        self.last_error = event.reason
        if event.setback.is_refusal and self.connection.last_tried is Role.CURRENT:
            self.schedule.refused()
            last_refusal.record(self.home, self.clock.now(), event.reason, code=event.code)
            self.handlers.refused(event.reason)
        if event.setback is Setback.UNUSABLE:
            self.rotation.key_is_lost(is_candidates=self.connection.last_tried is Role.CANDIDATE)
        if event.setback is Setback.UNTRUSTED:
            self.schedule.refused()  # if its dates are the obstacle, EST knows the time
        name = "disconnected" if event.was_up else "connect-failed"
        waits = round(event.retry_seconds, 1)
        self._log.event(name, server=event.server, cause=event.setback, reason=event.reason, retry_seconds=waits)
        if self.connection.last_tried is Role.CANDIDATE and self.candidate is not None:
            self.rotation.answer_waiting(
                f"The new certificate is stored, but could not be proven yet: {event.reason}.",
                "The next connection tries it again.",
            )

    def _after_enrollment(self, outcome: Outcome) -> None:
        self.identities.refresh()
        # Current already, if another process has stored and promoted it; that may have been noticed before.
        replaced = self.current is not None and self.current.certificate.fingerprint != self.rotation.renews
        received = self.candidate or (self.current if replaced else None)
        if outcome.ok and received is not None:
            self._log.event("certificate-received", slot=received.slot)
            return
        if outcome.ok:
            outcome = Outcome(ok=False, message="The new certificate is not in its slot.")
        now = self.clock.now()
        lifetime = self.current.lifetime if self.current else Lifetime(now, now + _LIFETIME_UNKNOWN)
        final = outcome.refused and (self.rotation.recovers or (outcome.ended and not self.identities.has_bootstrap))
        wait = self.rotation.fetch_failed(outcome, lifetime, now, final=final)
        self.last_error = outcome.message
        if outcome.refused:
            last_refusal.record(self.home, now, outcome.message, outcome.advice, final=final, code=outcome.code)
        self._log.event("renewal-failed", reason=outcome.message, refused=outcome.refused, retry_seconds=round(wait, 1))
