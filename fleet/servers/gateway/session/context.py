"""Context protocol: everything that a session needs of the gateway it belongs to."""

from collections.abc import Coroutine, Mapping
from datetime import datetime
from typing import Protocol, TypeVar

from fleet.domain.peer import Peer
from fleet.servers.gateway.broker.upstream import Factory
from fleet.servers.gateway.close_reasons import CloseReason
from fleet.servers.gateway.limits.flow_control import FlowControlledTransport
from fleet.servers.gateway.limits.kept_filters import FilterSet
from fleet.servers.gateway.limits.limits import Limits
from fleet.servers.gateway.limits.rates import Budget
from fleet.servers.gateway.limits.return_delays import ReturnDelays
from fleet.servers.gateway.outcome_log import OutcomeLog
from fleet.servers.gateway.relay.relay import Relay
from fleet.servers.gateway.session.broker_link import BrokerLinks
from fleet.servers.gateway.session.registry import SessionRegistry
from fleet.servers.gateway.wills.waiting import WaitingWills
from fleet.services.admission import Admission
from fleet.wire.mqtt.connect import Connect

S = TypeVar("S")


class SessionContext(Protocol[S]):
    """`S` is the session itself."""

    @property
    def limits(self) -> Limits: ...

    @property
    def outcomes(self) -> OutcomeLog: ...

    @property
    def open_sessions(self) -> SessionRegistry[S]: ...

    @property
    def return_delays(self) -> ReturnDelays: ...

    @property
    def broker_links(self) -> BrokerLinks: ...

    @property
    def wills(self) -> WaitingWills: ...

    def now(self) -> datetime: ...

    def speaks_v5(self) -> bool:
        """Whether the broker does."""

    def feed_is_up(self) -> bool:
        """Whether the registry's event feed is up."""

    def spawn(self, work: Coroutine[object, object, None]) -> None:
        """Run `work` as a task that is cancelled when the gateway closes; log the exception that it ends with."""

    async def admit(self, peer: Peer, connect: Connect) -> Admission:
        """Raises: CloseSession."""

    def audit_denied(self, peer: Peer, admission: Admission, action: str, code: str, detail: Mapping[str, str]) -> None:
        """Audit that the device was refused what `detail` says, unless `action` is a delivery; repeats are folded into
        one row a minute.
        """

    def broker_username(self, admission: Admission) -> str:
        """The user name of the device at the broker."""

    def on_broker_lost(self, session: S, reason: CloseReason) -> None:
        """The broker has closed `session`'s connection: close it for `reason`, or because the device has connected
        elsewhere."""

    def budget(self, admission: Admission, connect: Connect) -> Budget:
        """What the device may still send, on any connection."""

    def kept_filters(self, admission: Admission, connect: Connect) -> FilterSet:
        """The filters that the broker may hold for the device. Call it before the broker gets the CONNECT."""

    def hold_acks(self, relay: Relay, broker: FlowControlledTransport) -> None:
        """Hold back the acknowledgements of a session, if `durable` is set."""

    async def connect_broker(self, model: str, factory: Factory) -> None:
        """Connect `factory()` to the broker, which knows the model by then. Raises: CloseSession."""
