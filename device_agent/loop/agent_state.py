"""The agent's state: its parts, and what is asked of them."""

from collections.abc import Callable

from device_agent import core
from device_agent.apps.access import Access
from device_agent.apps.control_handlers import ControlHandlers
from device_agent.apps.inbound import Inbound
from device_agent.config.agent_config import AgentConfig
from device_agent.core import Link, Phase
from device_agent.enrollment.renewal_schedule import RenewalSchedule
from device_agent.enrollment.rotation import OnRenewed, Rotation
from device_agent.hooks.deployments import Deployments
from device_agent.link.clock import device_clock
from device_agent.link.connection import Connection
from device_agent.log.event_log import Clock, EventLog
from device_agent.spool.publisher import publish_waiting
from device_agent.spool.spool import Spool
from device_agent.store.identities import Identities
from device_agent.store.identity_store import Identity, IdentityStore


class AgentState:
    """`chance` draws a number in [0, 1); `wake` interrupts the runner's poll."""

    def __init__(
        self,
        config: AgentConfig,
        log: EventLog,
        wake: Callable[[], None],
        clock: Clock,
        monotonic: Callable[[], float],
        chance: Callable[[], float],
    ) -> None:
        self.device_id = config.device_id
        self.home = config.home
        self._log = log
        self.clock = device_clock(config.home, clock)
        self.identities = Identities(IdentityStore(config.home), monotonic)
        self.spool = Spool(config, log, self.clock.reading, monotonic)
        self.outbox = self.spool.outbox
        self.connection = Connection(config, wake, monotonic, chance)
        self.rotation = Rotation(config.refused_retry_seconds, chance, monotonic)
        self.schedule = RenewalSchedule(
            config.home, config.renew_at_fraction, chance, monotonic, refused_seconds=config.refused_retry_seconds
        )
        self.deployments = Deployments(config.home, config.hooks, log, chance, monotonic)
        self.phase = Phase.SERVING
        self.last_error = ""
        self.stopping = False
        self.carries_messages = True
        """False: messages wait for `run`, where they are: this process ends before it could deliver them."""
        self.ca_file = config.ca_file
        self.monotonic = monotonic
        self.inbound = Inbound(self.connection, monotonic, self.spool.inbox, self.spool.filters)
        self.handlers = ControlHandlers(self, Access(config.apps, config.device_id))

    @property
    def can_start(self) -> bool:
        """Whether there is anything to connect or to enroll with."""
        return self.current is not None or self.candidate is not None or self.identities.has_bootstrap

    @property
    def is_idle(self) -> bool:
        """Whether every message is delivered, refused or, by an agent that stops, kept in the spool; and written."""
        waiting = self.outbox.unsaved if self.stopping else len(self.outbox)
        return waiting == 0 and not any(link.wants_write for link in self.connection.links)

    def publish(self) -> None:
        """Store what was accepted since the last turn, and send what is queued: nothing while a candidate is proven."""
        self.spool.commit()
        if self.phase is Phase.SERVING:
            # The server moves the session from the old connection to the new, and an acknowledgement lost in that
            # moment would cause a duplicate.
            publish_waiting(self.outbox, self.connection, self._log)

    def drain(self) -> None:
        """Deliver what is queued, and begin nothing new. A candidate is kept for the next start."""
        self.stopping = True
        self.outbox.stop()
        if self.phase is Phase.QUIESCING:
            self.phase = Phase.SERVING  # queued messages go first

    def close(self) -> None:
        """Kill the children, answer who waits for a renewal, disconnect."""
        self.rotation.child.stop()
        self.schedule.child.stop()
        self.deployments.stop()
        self.rotation.answer_waiting("The agent was stopped.", "")
        self.connection.close()
        self.spool.close()

    def _view(self) -> core.View:
        connection, rotation = self.connection, self.rotation
        return core.View(
            current=self.current.lifetime if self.current else None,
            candidate=self.candidate.lifetime if self.candidate and not self.stopping else None,
            link=connection.state,
            link_uses=connection.uses,
            phase=self.phase,
            in_flight=self.outbox.in_flight,
            renewing=rotation.child.running,
            renewal_due=self._renewal_is_due(),
            renewal_forced=rotation.forced,
            renewal_ended=rotation.ended,
            has_bootstrap=self.identities.has_bootstrap and not self.stopping,
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
        if self.current is None or self.stopping:
            return False
        if self.identities.has_bootstrap and self.connection.current_is_refused:
            return True  # the EST server says whether the certificate has ended, which a gateway does not
        return self.schedule.is_due(self.current, self.clock.now())

    @property
    def current(self) -> Identity | None:
        """The identity in use."""
        return self.identities.current

    @property
    def candidate(self) -> Identity | None:
        """A certificate that is not proven yet."""
        return self.identities.candidate

    @property
    def renewal_due_at(self) -> str | None:
        return self.schedule.due_at(self.current).isoformat() if self.current is not None else None

    def look_for_candidate(self) -> bool:
        """Whether there is a certificate to prove; another process may have stored it, or a new current one."""
        self.identities.refresh()
        if self.candidate is None:
            return False
        self.rotation.fetched()
        return True

    def force_renewal(self, on_renewed: OnRenewed | None) -> None:
        """Renew now, and report the outcome. A candidate that has not been tried yet is proven instead."""
        self.rotation.force(on_renewed)
        self.connection.retry_if_ended()
        if self.candidate is not None and not self.rotation.candidate_refused:
            self.rotation.forced = False
            if self.connection.state is Link.DOWN:
                self.connection.connect_at = 0.0
