"""The agent's connection: the one in use, and a second one while a candidate is being proven.

Owns the links and their backoff. `core.decide` decides when to connect, and with which identity.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from device_agent.config.agent_config import AgentConfig
from device_agent.core import Link, Role, Setback
from device_agent.link.attempts import Attempts
from device_agent.link.delays import Delays
from device_agent.link.mqtt_link import MQTT_5, Acknowledged, Connected, Lost, MqttLink
from device_agent.link.network_watch import NetworkChange
from device_agent.link.pace import Pace
from device_agent.link.server_choice import ServerChoice
from device_agent.link.tls_context import KEY_SECONDS_MAX, tls_context
from device_agent.packets import NO_EXTRAS, Extras, Received, Subscribed
from device_agent.spool.outbox import WINDOW_MAX
from device_agent.store.identity_store import Identity
from device_agent.store.key_store import FILE

CONNECTING_SECONDS_MAX = 30.0  # from the first packet to CONNACK
STABLE_SECONDS = 30.0  # a connection that was up this long resets the backoff


@dataclass(frozen=True, slots=True)
class Up:
    """The connection in use is established."""

    session_present: bool


@dataclass(frozen=True, slots=True)
class Down:
    """The connection in use is lost, or failed."""

    setback: Setback
    reason: str
    was_up: bool
    retry_seconds: float
    server: str = ""
    handed_over: bool = False
    """The server closed it because the candidate's connection is taking over the session."""
    code: str = ""
    """The fleet's, of a refusal."""


@dataclass(frozen=True, slots=True)
class Proven:
    """The candidate's connection is established, and is the one in use from now on."""

    session_present: bool = True


@dataclass(frozen=True, slots=True)
class ProofFailed:
    setback: Setback
    reason: str


ConnectionEvent = Up | Down | Proven | ProofFailed | Acknowledged | Received | Subscribed


class Connection:
    def __init__(
        self,
        config: AgentConfig,
        wake: Callable[[], None],
        monotonic: Callable[[], float],
        chance: Callable[[], float],
    ) -> None:
        self._config = config
        self._delays = Delays(config)
        self._choice = ServerChoice(config)
        self._wake = wake
        self._monotonic = monotonic
        self._chance = chance
        self._link: MqttLink | None = None
        self._proving: MqttLink | None = None
        self._proving_identity: Identity | None = None
        self._attempts = Attempts(config.home)
        self._began = False
        self.held_back = ""
        """Why the first attempt of this run waits."""
        self._up_since = 0.0
        self._retry_sooner_at: float | None = None
        """From when on a change of the network shortens the delay; None: it is not the network's."""
        self._refused: set[Role | None] = set()
        self._known: set[Identity] = set()
        """What has been tried, or was in the store at the last attempt."""
        self.state = Link.DOWN
        self.uses: Role | None = None
        self.identity: Identity | None = None
        """Of the connection in use or connecting."""
        self.last_tried: Role | None = None
        self.both_refused_since: float | None = None
        """Since when the server has refused the current certificate and the candidate, one after the other."""
        self.connect_at = 0.0
        self.connecting_until = 0.0
        self.window = WINDOW_MAX
        self.packet_size_max: int | None = None
        self._pace = Pace(monotonic, chance)

    def use(self, config: AgentConfig) -> None:
        """Take these settings for the next attempt: now, if those of the delays have changed."""
        if Delays(config).settings != self._delays.settings:
            self.connect_at = 0.0
        self._config = config
        self._delays = Delays(config)
        self._choice.use(config)

    def follow(self, current: Identity | None, candidate: Identity | None) -> None:
        """Take note of what the store holds, which other processes change at any time.

        A backoff belongs to the certificates that failed: with one that was not there then, `connect_at` is now. What
        another process has promoted, or replaced, is not ours to promote.
        """
        if self.uses is Role.CANDIDATE and self.identity != candidate:
            self.uses = Role.CURRENT
        present = {identity for identity in (current, candidate) if identity is not None}
        if not self._began and present:
            self._begin(present)
        if self.state is Link.DOWN and not present <= self._known:
            self._known = present
            self.connect_at, self.last_tried = 0.0, None
            self._not_refused()
            self._attempts.go_on()

    def _begin(self, present: set[Identity]) -> None:
        # A device that restarts again and again waits as one that has been failing all the time.
        self._began, self._known = True, present
        failures = self._attempts.begin([identity.certificate.fingerprint for identity in present])
        if failures:
            backoff = self._delays.ended if self._attempts.ended else self._delays.usual
            delay = backoff.delay_seconds(failures - 1, self._chance())
            self.connect_at = self._monotonic() + delay
            self.held_back = f"it waits {delay:.0f} s to connect: {failures} short connections or starts in a row"

    def network_changed(self, change: NetworkChange) -> Down | None:
        """Connect soon if the network is the reason for waiting; end a connection whose address is gone."""
        now = self._monotonic()
        if self.state is Link.UP and self._link is not None and self._link.local_address in change.gone:
            return self.hang_up("this machine no longer has the address that the connection used")
        if change.improved and self.state is Link.DOWN and self._retry_sooner_at is not None:
            self.connect_at = min(self.connect_at, max(now, self._retry_sooner_at) + self._chance())
        return None

    def retry_now(self) -> None:
        """What has kept a server from being trusted, or accepting this device, may be over."""
        self._attempts.go_on()
        if self.state is Link.DOWN:
            self.connect_at = self._monotonic()

    def retry_if_ended(self) -> None:
        """Somebody has asked to go on with what was refused permanently."""
        if self._attempts.ended:
            self.retry_now()

    def connect(self, identity: Identity, role: Role, check_time: bool, at: datetime | None = None) -> None:
        """Start the connection in use, whose outcome is an Up or Down. `at`: judges dates if `check_time` does not."""
        self.uses, self.identity = role, identity
        self._link = self.new_link(identity, check_time, at)
        self.state = Link.CONNECTING
        self.connecting_until = self._monotonic() + self._connecting_seconds_max
        self._link.open()

    def prove(self, identity: Identity, check_time: bool, at: datetime | None = None) -> None:
        """Start the candidate's connection beside the one in use. Its outcome is a Proven or ProofFailed event."""
        self._proving, self._proving_identity = self.new_link(identity, check_time, at), identity
        self.connecting_until = self._monotonic() + self._connecting_seconds_max
        self._proving.open()

    def drop_proof(self) -> None:
        """Close the candidate's connection."""
        if self._proving is not None:
            self._proving.close()
            self._proving = None

    def hang_up(self, reason: str) -> Down:
        """Close the connection in use because of `reason`."""
        return self._down(Lost(Setback.NETWORK, reason))

    def close(self) -> None:
        """Close all connections with a DISCONNECT."""
        self.drop_proof()
        if self.state is Link.UP:
            self._attempts.succeeded()  # stopped on purpose: the next start is no retry
        if self._link is not None:
            self._link.close()
            self._link = None
        self.state = Link.DOWN

    def publish(self, topic: str, payload: bytes, qos: int, extras: Extras = NO_EXTRAS) -> int:
        """Send on the connection in use and return the packet id. Only while `state` is UP.

        Raises: ValueError if this message can never be sent.
        """
        if self._link is None:
            raise RuntimeError("publish without a connection")
        if self.packet_size_max is not None and len(topic) * 4 + len(payload) + 16 > self.packet_size_max:
            raise ValueError(f"the server accepts packets of at most {self.packet_size_max} bytes")
        return self._link.publish(topic, payload, qos, extras)

    def subscribe(self, topic_filter: str, qos: int) -> int:
        """Subscribe on the connection in use; a Subscribed with the packet id follows. Only while `state` is UP."""
        if self._link is None:
            raise RuntimeError("subscribe without a connection")
        return self._link.subscribe(topic_filter, qos)

    def unsubscribe(self, topic_filter: str) -> int:
        """End a subscription on the connection in use; as `subscribe`. 0 without a connection."""
        return self._link.unsubscribe(topic_filter) if self._link is not None and self.state is Link.UP else 0

    def acknowledge(self, packet_id: int) -> None:
        """Acknowledge a message that the connection in use has brought."""
        if self._link is not None and self.state is Link.UP:
            self._link.acknowledge(packet_id)

    @property
    def in_flight_max(self) -> int:
        return self._pace.in_flight_max(self.window)

    @property
    def is_up(self) -> bool:
        return self.state is Link.UP

    @property
    def server(self) -> str:
        """Address of the server in use, or to try next."""
        return self._choice.server

    @property
    def protocol(self) -> int:
        """Of the connection in use, or to try next."""
        return self._choice.protocol

    @property
    def current_is_refused(self) -> bool:
        """Whether the server has refused the current certificate since a connection was last established."""
        return Role.CURRENT in self._refused

    @property
    def protocol_name(self) -> str:
        return "5.0" if self.protocol == MQTT_5 else "3.1.1"

    @property
    def links(self) -> list[MqttLink]:
        """The links whose sockets are to be polled."""
        return [link for link in (self._link, self._proving) if link is not None]

    def collect(self) -> list[ConnectionEvent]:
        """Events since the last call. The proof comes last: acknowledgements that arrived on the old connection before
        it count. Raises: KeyStoreLost."""
        for link in self.links:
            link.tick()
        if self._is_stable():
            self._attempts.succeeded()
        events: list[ConnectionEvent] = []
        for event in self._link.events() if self._link else ():
            match event:
                case Connected():
                    self._came_up(event)
                    events.append(Up(event.session_present))
                case Acknowledged() | Received() | Subscribed():
                    if isinstance(event, Acknowledged):
                        self._pace.answered(is_temporary=event.is_temporary)
                    events.append(event)
                case Lost():
                    events.append(self._down(event))
        for event in self._proving.events() if self._proving else ():
            match event:
                case Connected():
                    self._adopt()
                    self._came_up(event)
                    events.append(Proven(event.session_present))
                case Lost():
                    self.drop_proof()
                    events.append(ProofFailed(event.setback, event.reason))
                case Received() | Subscribed():
                    events.append(event)
                case Acknowledged():
                    pass  # nothing is published on it yet
        return events

    def _adopt(self) -> None:
        # The server has moved the session here (same client id) from the old connection, which is closed.
        if self._link is not None:
            self._link.close()
        self._link, self._proving = self._proving, None
        self.uses, self.identity = Role.CANDIDATE, self._proving_identity

    @property
    def _connecting_seconds_max(self) -> float:
        in_hardware = self._config.key_store.kind != FILE
        return CONNECTING_SECONDS_MAX + (KEY_SECONDS_MAX if in_hardware else 0.0)

    def _not_refused(self) -> None:
        self._refused, self.both_refused_since = set(), None

    def _came_up(self, event: Connected) -> None:
        self._not_refused()
        self.state = Link.UP
        self.last_tried = None
        self._choice.came_up()
        self._up_since = self._monotonic()
        self.window = max(1, min(WINDOW_MAX, event.receive_maximum))
        self.packet_size_max = event.packet_size_max

    def _down(self, lost: Lost) -> Down:
        was_up, stable, server = self.state is Link.UP, self._is_stable(), self.server
        if self._link is not None:
            self._link.close()
            self._link = None
        self.state = Link.DOWN
        if self._proving is not None:
            self.uses, self.identity, self.last_tried = None, None, None
            self.connect_at = self._monotonic()
            return Down(lost.setback, lost.reason, was_up, 0.0, server, handed_over=True)
        another = self._choice.lost(lost, was_up)
        self._retry_sooner_at = None
        if was_up:
            self.last_tried = None
            if stable:
                self._attempts.succeeded()
        elif not another:
            self.last_tried = self.uses
        if another:
            delay = 0.0  # `last_tried` is unchanged: the same identity at the next server
        elif lost.setback is Setback.PROTOCOL and not was_up:
            delay = 0.0
            self.last_tried = None  # the same identity again, with the other version
        else:
            if lost.setback.is_refusal and not was_up:  # else the session was taken over
                self._refused.add(self.uses)
                if len(self._refused) == len(Role) and self.both_refused_since is None:
                    self.both_refused_since = self._monotonic()
            backoff = self._delays.after(lost.setback, self.uses)
            delay = backoff.delay_seconds(self._attempts.failures, self._chance())
            self._attempts.failed(ended=backoff is self._delays.ended)
            least = self._delays.least_if_network_changes(lost.setback)
            self._retry_sooner_at = None if least is None else self._monotonic() + least
        self.connect_at = self._monotonic() + delay
        self.uses, self.identity = None, None
        return Down(lost.setback, lost.reason, was_up, delay, server, code=lost.code)

    def _is_stable(self) -> bool:
        return self.state is Link.UP and self._monotonic() - self._up_since >= STABLE_SECONDS

    def new_link(self, identity: Identity, check_time: bool, at: datetime | None) -> MqttLink:
        """A link that is not open yet."""
        self._known.add(identity)
        make_context = partial(tls_context, self._config, identity, check_time, at)
        return MqttLink(self._choice.target, make_context, self.protocol, self._wake)
