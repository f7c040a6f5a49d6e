"""Handlers of the control requests."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from device_agent.apps.access import Access
from device_agent.apps.control_server import Client, Exchange, Handler
from device_agent.apps.inbound import Inbound
from device_agent.apps.message_handlers import MessageHandlers
from device_agent.core import Link, Phase
from device_agent.enrollment.rotation import OnRenewed, Rotation
from device_agent.errors import Denied, NotEnrolled
from device_agent.link.connection import Connection
from device_agent.spool.outbox import Outbox, act_on_rejected
from device_agent.spool.spool import Spool
from device_agent.store.identity_store import Identity

PROTOCOL = 1  # of apps/README.md; it grows by requests, events and keys, which a program ignores if unknown


class Agent(Protocol):
    """The interface of the agent that the handlers need."""

    device_id: str
    connection: Connection
    rotation: Rotation
    spool: Spool
    outbox: Outbox
    phase: Phase
    last_error: str
    inbound: Inbound
    monotonic: Callable[[], float]
    ca_file: Path
    home: Path
    carries_messages: bool

    @property
    def current(self) -> Identity | None: ...
    @property
    def stopping(self) -> bool: ...
    @property
    def renewal_due_at(self) -> str | None: ...

    def force_renewal(self, on_renewed: OnRenewed) -> None: ...
    def look_for_candidate(self) -> bool: ...


class ControlHandlers:
    """The handlers of a ControlServer."""

    def __init__(self, agent: Agent, access: Access) -> None:
        self._agent = agent
        self._access = access
        self._messages = MessageHandlers(agent, access)
        self._waiting: list[Exchange] = []
        self._waiting_renewed: list[Exchange] = []

    def handlers(self) -> dict[str, Handler]:
        """By the request's name: those about the whole device are its owner's, the others for every listed user."""
        owners = {"renew": self.renew, "prove": self.prove, "rejected": self._carried(self.rejected)}
        others: dict[str, Handler] = {
            "status": self.status,
            "hello": self.hello,
            "identity": self.identity,
            "wait-connected": self.wait_connected,
            "wait-renewed": self.wait_renewed,
        }
        others |= {name: self._carried(handler) for name, handler in self._messages.handlers().items()}
        allowed = {name: self._checked(handler, owner=True) for name, handler in owners.items()}
        return allowed | {name: self._checked(handler, owner=False) for name, handler in others.items()}

    def gone(self, client: Client) -> None:
        """The client's connection has ended."""
        self._messages.gone(client)

    def seconds_left(self) -> float:
        """Until `tick` has something to do."""
        return self._messages.seconds_left()

    def tick(self) -> None:
        """At every turn of the loop."""
        self._messages.tick()

    def refused(self, reason: str) -> None:
        """Answer those who wait for a delivery: the server does not accept this device."""
        self._messages.refused(reason)

    def renewed(self) -> None:
        """Answer the clients of wait-renewed."""
        waiting, self._waiting_renewed = self._waiting_renewed, []
        for exchange in waiting:
            self.identity(exchange, {})

    def _checked(self, handler: Handler, *, owner: bool) -> Handler:
        def checked(exchange: Exchange, request: dict[str, Any]) -> None:
            rights = self._access.rights(exchange.client.peer)
            if not (rights.owner if owner else rights.listed):
                raise Denied(
                    "This user may not ask the agent for that.",
                    "Its owner may; others are listed as [[apps.client]] in agent.toml.",
                )
            handler(exchange, request)

        return checked

    def _carried(self, handler: Handler) -> Handler:
        """An agent that carries no messages hangs up on who has some: as if none ran, programs wait for the next."""

        def checked(exchange: Exchange, request: dict[str, Any]) -> None:
            if self._agent.carries_messages:
                handler(exchange, request)
            else:
                exchange.client.close()

        return checked

    def connected(self) -> None:
        """Answer the clients of wait-connected."""
        self._messages.connected()
        waiting, self._waiting = self._waiting, []
        for exchange in waiting:
            exchange.answer()

    def status(self, exchange: Exchange, _: dict[str, Any]) -> None:
        agent = self._agent
        exchange.answer(
            pid=os.getpid(),
            connected=agent.connection.state is Link.UP,
            server=agent.connection.server,
            protocol=agent.connection.protocol_name,
            phase=agent.phase,
            renewing=agent.rotation.child.running,
            renewal_due_at=agent.renewal_due_at,
            renewals=agent.rotation.done,
            programs=agent.inbound.programs,
            subscriptions=agent.inbound.subscriptions.granted,
            inbox=len(agent.inbound.inbox),
            inbox_dropped=agent.inbound.inbox.dropped,
            last_error=agent.last_error,
            **agent.spool.status(),
        )

    def rejected(self, exchange: Exchange, request: dict[str, Any]) -> None:
        exchange.answer(**act_on_rejected(self._agent.outbox, request.get("act")))

    def hello(self, exchange: Exchange, _: dict[str, Any]) -> None:
        exchange.answer(device_id=self._agent.device_id, protocol=PROTOCOL)

    def identity(self, exchange: Exchange, _: dict[str, Any]) -> None:
        current = self._agent.current
        if current is None:
            raise NotEnrolled("There is no certificate.")
        info = current.certificate
        certificate, key = current.files
        exchange.answer(
            device_id=self._agent.device_id,
            serial=info.serial,
            not_after=info.not_after.isoformat(),
            certificate=str(certificate),
            key=str(key),
            ca=str(self._agent.ca_file),
        )

    def wait_renewed(self, exchange: Exchange, _: dict[str, Any]) -> None:
        self._waiting_renewed = [each for each in self._waiting_renewed if not each.closed]
        self._waiting_renewed.append(exchange)

    def renew(self, exchange: Exchange, _: dict[str, Any]) -> None:
        def on_renewed(message: str, advice: str) -> None:
            current = self._agent.current
            if message or current is None:
                exchange.refuse(message or "There is no certificate.", advice)
            else:
                info = current.certificate
                exchange.answer(slot=current.slot, serial=info.serial, not_after=info.not_after.isoformat())

        self._agent.force_renewal(on_renewed)

    def prove(self, exchange: Exchange, request: dict[str, Any]) -> None:
        if self._agent.look_for_candidate():
            self.renew(exchange, request)
        else:
            exchange.answer()

    def wait_connected(self, exchange: Exchange, _: dict[str, Any]) -> None:
        if self._agent.connection.state is Link.UP:
            exchange.answer()
            return
        self._waiting = [each for each in self._waiting if not each.closed]
        self._waiting.append(exchange)
