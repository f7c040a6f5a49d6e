"""The long-lived agent: one loop that waits, gathers a View, asks `core.decide`, and does what it says.

Everything happens in one thread, but for the blocking part of a connect. Enrollment runs in a child process.
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
from device_agent.identity_store import Identity, IdentityStore
from device_agent.mqtt_link import Acknowledged
from device_agent.outbox import Outbox
from device_agent.publisher import Feed, publish_waiting, take_lines
from device_agent.renewal_schedule import Schedule
from device_agent.rotation import PROMOTE_RETRY_SECONDS, QUIESCING_SECONDS_MAX, OnRenewed, Rotation
from device_agent.signals import RENEW_SIGNAL, STOP_SIGNALS, Waker
from fleet.est_client.errors import ClientError
from fleet.est_client.validity import Lifetime

LOCK_NAME = "agent.lock"
DRAIN_SECONDS_MAX = 4.0  # for acknowledgements, after SIGTERM
LOOP_SECONDS_MAX = 5.0  # between two looks at keep-alive
DECISIONS_MAX = 16  # in one turn of the loop: more would mean that two of them undo each other


def _chance() -> float:
    return int.from_bytes(os.urandom(6)) / 2**48


class Runner:
    """`run()` once. `chance` draws a number in [0, 1)."""

    def __init__(
        self,
        config: AgentConfig,
        journal: EventLog,
        feed: Feed | None = None,
        *,
        clock: Clock = system_clock,
        monotonic: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = _chance,
    ) -> None:
        self.device_id = config.device_id
        self._config = config
        self._journal = journal
        self._feed = feed
        self._clock = clock
        self._monotonic = monotonic
        self._chance = chance
        self._store = IdentityStore(config.home)
        self.outbox = Outbox(config.outbox_messages_max)
        self._wakeup = Waker()
        self.connection = Connection(config, self._wakeup.wake, monotonic, chance)
        self.rotation = Rotation(config.refused_retry_seconds, chance, monotonic)
        self.phase = Phase.SERVING
        self._current: Identity | None = None
        self._candidate: Identity | None = None
        self.schedule = Schedule(config.home, config.renew_at_fraction, chance, monotonic)
        self._look_at = 0.0  # when to look into the slots again
        self.last_error = ""
        self._stop_by: float | None = None
        self._answers = ControlHandlers(self)

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT, or the end of the feed. 0 when everything accepted was delivered, else 1.

        Raises: Busy when an agent runs in this home already; NotEnrolled; OSError.
        """
        self._serve(self._is_finished)
        self._journal.event("stopped", delivered=self.outbox.delivered, undelivered=len(self.outbox))
        return 1 if len(self.outbox) else 0

    def renew_once(self) -> None:
        """Renew, prove the new certificate by a connection, and return.

        Raises: AgentError when that failed, with the working pair as it was; Busy; NotEnrolled; OSError.
        """
        outcome: list[tuple[str, str]] = []
        self.force_renewal(lambda message, advice: outcome.append((message, advice)))
        self._serve(lambda: bool(outcome) or self._stop_by is not None)
        message, advice = outcome[0]
        if message:
            raise AgentError(message, advice)

    def _serve(self, is_finished: Callable[[], bool]) -> None:
        lock = held_lock(self._config.home / LOCK_NAME, "An agent is running in this home already.")
        with lock, self._wakeup.catching_signals():
            self._look_into_slots()
            if self._current is None and self._candidate is None:
                raise NotEnrolled(
                    "This device has no certificate yet.",
                    f"Run: device-agent --home {shlex.quote(str(self._config.home))} enroll.",
                )
            desk = ControlServer(self._config.home, self._answers.handlers())
            self._journal.event("started", device=self.device_id, pid=os.getpid())
            try:
                while not is_finished():
                    seconds = self._decide_until_wait()
                    if is_finished():
                        break  # a decision was the last thing to do
                    self._turn(desk, seconds)
            finally:
                self.rotation.stop()
                self.schedule.stop()
                self.rotation.tell("The agent was stopped.", "")
                self.connection.close()
                desk.close()
                self._wakeup.close()

    def _turn(self, desk: ControlServer, seconds: float) -> None:
        if self._feed and self._stop_by is None:
            take_lines(self._feed, self.outbox, self.device_id, self._journal)
        if self.phase is Phase.SERVING:
            # While a candidate is about to be proven nothing leaves: the server takes the session over from the old
            # connection, and an acknowledgement lost in that moment would mean a second copy.
            publish_waiting(self.outbox, self.connection, self._journal)
        ready = self._poll(desk, seconds)
        for link in self.connection.links:
            if link.socket is not None and (events := ready.get(link.socket.fileno())):
                link.handle_io(bool(events & ~select.POLLOUT), bool(events & select.POLLOUT))
        if self._wakeup.descriptor in ready:
            self._wakeup.clear()
        self._take_signals()
        if self._feed and self._feed.lines.descriptor in ready:
            self._feed.lines.read()
        desk.handle(ready)
        if (outcome := self.rotation.read()) is not None:
            self._after_enrollment(outcome)
        if suggestion := self.schedule.read():
            self._journal.event("renewal-suggested", at=suggestion)
        for event in self.connection.collect():
            self._after(event)

    def _poll(self, desk: ControlServer, seconds: float) -> dict[int, int]:
        # A new poll object each turn: with ten descriptors it costs nothing, and none of them can be stale.
        poll = select.poll()
        watched = desk.watched() | {self._wakeup.descriptor: select.POLLIN}
        for link in self.connection.links:
            if link.socket is not None:
                watched[link.socket.fileno()] = select.POLLIN | (select.POLLOUT if link.wants_write else 0)
        if self.rotation.process is not None:
            watched[self.rotation.process.fileno()] = select.POLLIN
            seconds = min(seconds, 1.0)
        if self.schedule.process is not None:
            watched[self.schedule.process.fileno()] = select.POLLIN
        feed = self._feed
        if feed and self._stop_by is None and not feed.lines.at_end and not self.outbox.is_full:
            watched[feed.lines.descriptor] = select.POLLIN
        for descriptor, events in watched.items():
            poll.register(descriptor, events)
        return dict(poll.poll(min(seconds, LOOP_SECONDS_MAX) * 1000 + 1))

    # What to do next

    def _decide_until_wait(self) -> float:
        if self._monotonic() >= self._look_at:
            self._look_into_slots()
        if self._current is not None and self._stop_by is None and not self.rotation.running:
            self.schedule.ask_if_time(self._current)
        for _ in range(DECISIONS_MAX):
            decision = core.decide(self._view(), self._clock(), self._monotonic())
            if isinstance(decision, core.Wait):
                return decision.seconds
            self._do(decision)
        return 1.0

    def _view(self) -> core.View:
        connection, rotation = self.connection, self.rotation
        return core.View(
            current=self._current.lifetime if self._current else None,
            candidate=self._candidate.lifetime if self._candidate and not self.stopping else None,
            link=connection.state,
            link_uses=connection.uses,
            phase=self.phase,
            in_flight=self.outbox.in_flight,
            renewing=rotation.running,
            renewal_due=self._renewal_is_due(),
            renewal_forced=rotation.forced,
            candidate_refused=rotation.candidate_refused,
            last_tried=connection.last_tried,
            connect_at=connection.connect_at,
            connecting_until=connection.connecting_until,
            renew_at=rotation.renew_at,
            prove_at=rotation.prove_at,
            quiescing_until=rotation.quiescing_until,
            promote_at=rotation.promote_at,
        )

    def _renewal_is_due(self) -> bool:
        if self._current is None or self._stop_by is not None:
            return False
        return self.schedule.is_due(self._current, self._clock())

    def _do(self, decision: core.Decision) -> None:
        match decision:
            case core.Connect(which=which, check_time=check_time):
                self._connect(which, check_time)
            case core.HangUp():
                self._after(self.connection.hang_up("the server did not answer in time"))
            case core.Renew():
                self._journal.event("renewing")
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

    def _connect(self, which: Role, check_time: bool) -> None:
        identity = self._candidate if which is Role.CANDIDATE else self._current
        if identity is None:
            return
        if not check_time:
            self._journal.event("clock-not-set", now=self._clock().isoformat(), note="dates are not checked")
        try:
            self.connection.connect(identity, which, check_time)
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
            self.phase = Phase.SERVING  # the next connection tries the candidate first, and tells who waits
            return
        self._after(ProofFailed(Setback.NETWORK, reason))

    def _promote(self) -> None:
        if self._candidate is None:
            return
        try:
            with self._store.lock():
                self._store.promote(self._candidate)
        except (ClientError, OSError) as error:
            self.last_error = f"the switch to the new certificate was not stored: {error}"
            self._journal.event("promote-failed", reason=error)
            self.rotation.promote_at = self._monotonic() + PROMOTE_RETRY_SECONDS
            return
        self.connection.uses = Role.CURRENT
        self._share = self._chance()
        self._look_into_slots()
        self.rotation.succeeded()
        if self._current is not None:
            info = self._current.certificate
            self._journal.event(
                "renewed", slot=self._current.slot, serial=info.serial, not_after=info.not_after.isoformat()
            )

    def _look_into_slots(self) -> None:
        self._look_at = self._monotonic() + core.TICK_SECONDS
        self._current, self._candidate = self._store.current(), self._store.candidate()

    # What has happened

    def _after(self, event: ConnectionEvent) -> None:
        match event:
            case Acknowledged(packet_id=packet_id, failure=failure):
                if failure:
                    self._journal.event("message-refused", reason=failure)
                self.outbox.acknowledged(packet_id, failure)
            case Up(session_present=session_present):
                self._came_up(session_present)
            case Down():
                self._went_down(event)
            case Proven():
                self.phase = Phase.SERVING
                self.connection.uses, self.connection.identity = Role.CANDIDATE, self._candidate
                self._came_up(session_present=True)
            case ProofFailed(setback=setback, reason=reason):
                self.phase = Phase.SERVING
                refused = setback is Setback.REFUSED and self.connection.state is Link.UP
                if self._current is not None:
                    self.rotation.proof_failed(
                        f"The new certificate did not work: {reason}.", refused=refused, lifetime=self._current.lifetime
                    )
                self.last_error = reason
                self._journal.event("proof-failed", setback=setback, reason=reason)

    def _came_up(self, session_present: bool) -> None:
        self.last_error = ""
        self._journal.event(
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
        name = "disconnected" if event.was_up else "connect-failed"
        self._journal.event(
            name, setback=event.setback, reason=event.reason, retry_seconds=round(event.retry_seconds, 1)
        )
        if self.connection.last_tried is Role.CANDIDATE and self._candidate is not None:
            self.rotation.tell(
                f"The new certificate is stored, and could not be proven yet: {event.reason}.",
                "It is tried again with the next connection.",
            )

    def _after_enrollment(self, outcome: Outcome) -> None:
        self._look_into_slots()
        if outcome.ok and self._candidate is not None:
            self._journal.event("certificate-received", slot=self._candidate.slot)
            self.rotation.fetched()
            if self.connection.state is Link.DOWN:
                self.connection.connect_at = 0.0  # what was refused a moment ago may work with the new one
                self.connection.last_tried = None
            return
        lifetime = self._current.lifetime if self._current else Lifetime(self._clock(), self._clock())
        wait = self.rotation.fetch_failed(outcome, lifetime)
        self.last_error = outcome.message
        self._journal.event(
            "renewal-failed", reason=outcome.message, refused=outcome.refused, retry_seconds=round(wait, 1)
        )

    # What requests may ask

    @property
    def current(self) -> Identity | None:
        return self._current

    @property
    def stopping(self) -> bool:
        return self._stop_by is not None

    @property
    def renewal_due_at(self) -> str | None:
        return self.schedule.due_at(self._current).isoformat() if self._current is not None else None

    def look_for_candidate(self) -> bool:
        """Whether a certificate waits to be proven; another process may have stored it, or a new current one."""
        before = self._current
        self._look_into_slots()
        if self._current != before and self.connection.state is Link.DOWN:
            self.connection.connect_at = 0.0  # what was refused a moment ago may work with the new one
        if self._candidate is None:
            return False
        self.rotation.fetched()
        return True

    def force_renewal(self, told: OnRenewed | None) -> None:
        """Renew now, and tell how it went. A certificate that nobody has tried yet comes first."""
        self.rotation.force(told)
        if self._candidate is not None and not self.rotation.candidate_refused:
            self.rotation.forced = False
            if self.connection.state is Link.DOWN:
                self.connection.connect_at = 0.0

    # Signals, and the end

    def _take_signals(self) -> None:
        signals = self._wakeup.signals()
        if RENEW_SIGNAL in signals:
            self.force_renewal(None)
        if signals & STOP_SIGNALS and self._stop_by is None:
            self._stop_by = self._monotonic() + DRAIN_SECONDS_MAX
            if self.phase is Phase.QUIESCING:
                self.phase = Phase.SERVING  # what waits is to go out now; the candidate keeps till the next start
            self._journal.event("stopping", undelivered=len(self.outbox))

    def _is_finished(self) -> bool:
        idle = len(self.outbox) == 0 and not any(link.wants_write for link in self.connection.links)
        if self._stop_by is not None:
            return idle or self.connection.state is not Link.UP or self._monotonic() >= self._stop_by
        feed = self._feed
        return bool(feed and feed.stop_at_end and feed.lines.at_end and not feed.lines.has_line and idle)
