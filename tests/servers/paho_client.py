"""paho as the field's reference client, on its own thread, with what it is told put where a test can await it."""

import asyncio
import os
import socket
from pathlib import Path
from typing import Any, cast

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from tests.waiting import PATIENCE_SECONDS


class Paho:
    """One client. `connect` returns the reason code of CONNACK."""

    def __init__(self, client_id: str, version: int, *, clean: bool = True, transport: str = "tcp") -> None:
        self._loop = asyncio.get_running_loop()
        self.messages: asyncio.Queue[mqtt.MQTTMessage] = asyncio.Queue()
        self.subacks: asyncio.Queue[list[int]] = asyncio.Queue()
        self.reasons: list[str] = []
        """Reason Strings of SUBACK, PUBACK and DISCONNECT, in order; "" for one without."""
        self.pubacks: asyncio.Queue[int] = asyncio.Queue()
        self.disconnected: asyncio.Queue[int] = asyncio.Queue()
        self._connack: asyncio.Queue[int] = asyncio.Queue()
        settings: dict[str, Any] = {} if version == mqtt.MQTTv5 else {"clean_session": clean}
        self.client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id, protocol=MQTTProtocolVersion(version), transport=transport,  # type: ignore[arg-type]
            reconnect_on_failure=False, **settings,
        )  # fmt: skip
        self._v5 = version == mqtt.MQTTv5
        self._clean = clean
        self.client.max_inflight_messages_set(100)
        self.client.on_connect = lambda c, u, f, reason, p: self._put(self._connack, reason.value)
        self.client.on_message = lambda c, u, message: self._put(self.messages, message)
        self.client.on_subscribe = self._subscribed
        self.client.on_publish = self._published
        self.client.on_disconnect = self._disconnected

    def _put(self, queue: "asyncio.Queue[Any]", value: object) -> None:
        self._loop.call_soon_threadsafe(queue.put_nowait, value)

    def _published(self, client: object, data: object, mid: int, reason: ReasonCode, properties: Properties) -> None:
        self._note_reason(properties)
        self._put(self.pubacks, reason.value)

    def _subscribed(
        self, client: object, data: object, mid: int, reasons: list[ReasonCode], properties: Properties | None
    ) -> None:
        self._note_reason(properties)
        self._put(self.subacks, [reason.value for reason in reasons])

    def _disconnected(
        self, client: object, data: object, flags: object, reason: ReasonCode, properties: Properties | None
    ) -> None:
        self._note_reason(properties)
        self._put(self.disconnected, reason.value)

    def _note_reason(self, properties: Properties | None) -> None:
        self.reasons.append(getattr(properties, "ReasonString", ""))

    async def connect_unix(self, path: Path) -> int:
        """As `connect`. By way of the directory: a test's own may be longer than a socket's address."""
        directory = os.open(path.parent, os.O_PATH)
        try:
            return await self.connect(f"/proc/self/fd/{directory}/{path.name}")
        finally:
            os.close(directory)

    async def connect(self, host: str, port: int = 1, keepalive: int = 30) -> int:
        more: dict[str, Any] = {}
        if self._v5 and not self._clean:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = 600
            more = {"clean_start": False, "properties": properties}
        await asyncio.to_thread(self.client.connect, host, port, keepalive, **more)
        self.client.loop_start()
        code: int = await self.got(self._connack)
        return code

    async def got(self, queue: "asyncio.Queue[Any]") -> Any:
        return await asyncio.wait_for(queue.get(), PATIENCE_SECONDS)

    async def message(self) -> tuple[str, bytes]:
        found = await self.got(self.messages)
        return found.topic, bytes(found.payload)

    async def subscribe(self, *filters: str, qos: int = 1) -> list[int]:
        self.client.subscribe([(f, qos) for f in filters])
        codes: list[int] = await self.got(self.subacks)
        return codes

    async def publish(self, topic: str, payload: bytes = b"", qos: int = 1, *, retain: bool = False) -> int:
        """The reason code of its acknowledgement."""
        self.client.publish(topic, payload, qos, retain)
        code: int = await self.got(self.pubacks)
        return code

    def vanish(self) -> None:
        """End the connection without a word."""
        sock = self.client.socket()
        if sock is not None:
            socket.socket.shutdown(cast("socket.socket", sock), socket.SHUT_RDWR)

    async def close(self) -> None:
        self.client.disconnect()
        await asyncio.to_thread(self.client.loop_stop)
