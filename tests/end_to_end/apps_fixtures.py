"""A back end at the fleet's own broker, as programs on devices know it."""

import os
import threading
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Self

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from fleet.servers.gateway.broker.mosquitto import BACKEND, SOCKET
from tests.waiting import PATIENCE_SECONDS


class Backend:
    """Publishes to devices and hears them, on the broker's local socket."""

    def __init__(self, home: Path, *filters: str) -> None:
        self.messages: SimpleQueue[paho.MQTTMessage] = SimpleQueue()
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2, "backend", protocol=MQTTProtocolVersion.MQTTv5, transport="unix"
        )
        self._client.username_pw_set(BACKEND)
        self._client.on_message = lambda _client, _data, message: self.messages.put(message)
        ready = threading.Event()

        def subscribe(*_: object) -> None:
            self._client.subscribe([(each, 1) for each in filters or ("none",)])

        self._client.on_connect = subscribe
        self._client.on_subscribe = lambda *_: ready.set()
        directory = os.open(home / "run", os.O_PATH)  # a test's own may be longer than a socket's address
        try:
            self._client.connect(f"/proc/self/fd/{directory}/{SOCKET}")
        finally:
            os.close(directory)
        self._client.loop_start()
        assert ready.wait(PATIENCE_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def publish(self, topic: str, payload: bytes, response_topic: str = "", correlation: bytes = b"") -> None:
        """Published, and acknowledged by the broker."""
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        if response_topic:
            properties.ResponseTopic = response_topic
        if correlation:
            properties.CorrelationData = correlation
        self._client.publish(topic, payload, 1, properties=properties).wait_for_publish(PATIENCE_SECONDS)

    def next(self) -> paho.MQTTMessage:
        """The next message from a device."""
        return self.messages.get(timeout=PATIENCE_SECONDS)
