"""Handlers of the control requests."""

import base64
import binascii
import os
from typing import Any, Protocol

from device_agent.connection import Connection
from device_agent.control_server import Client, Handler
from device_agent.core import Link, Phase
from device_agent.errors import SendRefused
from device_agent.identity_store import Identity
from device_agent.outbox import Message, Outbox, topic_for
from device_agent.rotation import OnRenewed, Rotation


class Agent(Protocol):
    """The interface of the agent that the handlers need."""

    device_id: str
    connection: Connection
    rotation: Rotation
    outbox: Outbox
    phase: Phase
    last_error: str

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

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._waiting: list[Client] = []

    def handlers(self) -> dict[str, Handler]:
        return {
            "send": self.send,
            "status": self.status,
            "renew": self.renew,
            "prove": self.prove,
            "wait-connected": self.wait_connected,
        }

    def connected(self) -> None:
        """Answer the clients of wait-connected."""
        waiting, self._waiting = self._waiting, []
        for client in waiting:
            client.answer()

    def send(self, client: Client, request: dict[str, Any]) -> None:
        if self._agent.stopping:
            raise SendRefused("The agent is stopping.")
        topic = topic_for(str(request.get("topic", "")), self._agent.device_id)
        qos = request.get("qos", 1)
        if qos not in (0, 1):
            raise SendRefused("The QoS must be 0 or 1.")
        try:
            payload = base64.b64decode(str(request.get("payload", "")), validate=True)
        except binascii.Error:
            raise SendRefused("The payload is not base64.") from None
        if not request.get("wait"):
            self._agent.outbox.put(Message(topic, payload, qos))
            client.answer()
            return

        def on_done(failure: str) -> None:
            if failure:
                client.refuse(f"The server did not accept the message: {failure}.")
            else:
                client.answer()

        self._agent.outbox.put(Message(topic, payload, qos, on_done))

    def status(self, client: Client, _: dict[str, Any]) -> None:
        agent = self._agent
        client.answer(
            pid=os.getpid(),
            connected=agent.connection.state is Link.UP,
            protocol=agent.connection.protocol_name,
            phase=agent.phase,
            renewing=agent.rotation.running,
            renewal_due_at=agent.renewal_due_at,
            renewals=agent.rotation.done,
            waiting=len(agent.outbox),
            in_flight=agent.outbox.in_flight,
            delivered=agent.outbox.delivered,
            last_error=agent.last_error,
        )

    def renew(self, client: Client, _: dict[str, Any]) -> None:
        def on_renewed(message: str, advice: str) -> None:
            current = self._agent.current
            if message or current is None:
                client.refuse(message or "There is no certificate.", advice)
            else:
                info = current.certificate
                client.answer(slot=current.slot, serial=info.serial, not_after=info.not_after.isoformat())

        self._agent.force_renewal(on_renewed)

    def prove(self, client: Client, request: dict[str, Any]) -> None:
        if self._agent.look_for_candidate():
            self.renew(client, request)
        else:
            client.answer()

    def wait_connected(self, client: Client, _: dict[str, Any]) -> None:
        if self._agent.connection.state is Link.UP:
            client.answer()
            return
        self._waiting = [each for each in self._waiting if not each.closed]
        self._waiting.append(client)
