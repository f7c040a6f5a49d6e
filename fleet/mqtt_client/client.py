"""MQTT as a client, under asyncio: one connection, no session that goes on.

    client = MqttClient(Connect(V5, ""))
    await loop.create_connection(lambda: client, host, port, ssl=tls)
    connack = await client.answer()
    await client.subscribe("news")
    client.publish(Publish("questions", b"?"))
    code = await client.deliver(Publish("answers", b"!"))
    message = await client.messages.get()
    client.disconnect()

The caller connects it, over TCP, TLS or a Unix socket, and limits the time.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

from fleet.wire.errors import Malformed, WireError
from fleet.wire.mqtt import acks
from fleet.wire.mqtt.codes import V5, PacketType, Reason
from fleet.wire.mqtt.connect import Connack, Connect, decode_connack, encode_connect
from fleet.wire.mqtt.publish import Publish, decode_publish, encode_publish
from fleet.wire.mqtt.reader import CONNECT_SIZE_MAX, Packet, PacketReader
from fleet.wire.mqtt.subscribe import Subscribe, Subscription, decode_suback, encode_subscribe

_CLOSED = "it closed the connection"
MESSAGES_MAX = 100  # received and not yet taken
PACKET_ID_MAX = 65_535
_REFUSED = 0x80  # MQTT 5.0, 3.9.3: this code and those above


class MqttVisit(asyncio.Protocol):
    """CONNECT and DISCONNECT: what the broker sends after its CONNACK is neither read nor acknowledged."""

    def __init__(self, connect: Connect, size_max: int = CONNECT_SIZE_MAX) -> None:
        """`size_max`: of a packet that it reads, in bytes."""
        loop = asyncio.get_running_loop()
        self.connack: asyncio.Future[Connack] = loop.create_future()
        """Also one that refuses. ConnectionError: there is none."""
        self.lost: asyncio.Future[None] = loop.create_future()
        self.connect = connect
        self._reader = PacketReader(size_max)
        self._transport: asyncio.Transport | None = None

    async def answer(self) -> Connack:
        """The CONNACK, also one that refuses.

        A broker that closes at a CONNECT of 5.0 refuses the version: it may know 3.1.1 alone ([MQTT-3.1.2-2]).
        Raises: ConnectionError: there is none.
        """
        try:
            return await self.connack
        except ConnectionError:
            if self.connect.version != V5 or not self.lost.done():
                raise
            return Connack(False, Reason.UNSUPPORTED_PROTOCOL_VERSION)

    def disconnect(self, farewell: bytes | None = None) -> None:
        """Close in good order, with a DISCONNECT of the caller's or a plain one."""
        self._write(farewell or acks.disconnect(self.connect.version))
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._write(encode_connect(self.connect))

    def data_received(self, data: bytes) -> None:
        packets = self._reader.feed(data)
        try:
            if not self.connack.done() and (packet := next(packets, None)) is not None:
                # [MQTT-3.2.0-1] the first packet of a server is its CONNACK
                if packet.type is not PacketType.CONNACK:
                    raise Malformed("The first packet is no CONNACK.")
                self.connack.set_result(decode_connack(packet.body, self.connect.version))
            if self.connack.done():
                self._read(packets)
        except (WireError, asyncio.QueueFull):
            self._break_off()

    def connection_lost(self, exc: Exception | None) -> None:
        _fail(self.connack, _CLOSED)
        if not self.lost.done():
            self.lost.set_result(None)

    def _read(self, packets: Iterator[Packet]) -> None:
        """What follows the CONNACK. Raises: WireError, asyncio.QueueFull."""
        self._reader.rest()

    def _write(self, data: bytes) -> None:
        # To a transport that has ended asyncio's drops what is written, and uvloop's raises.
        if self._transport is not None and not self.lost.done():
            self._transport.write(data)

    def _break_off(self) -> None:
        """The broker violates the protocol."""
        _fail(self.connack, "the broker's answer is no CONNACK")


class MqttClient(MqttVisit):
    """Publishes with QoS 0 or 1, and receives what it subscribes to with QoS 0.

    A broker that violates the protocol, leaves a PINGREQ unanswered for the keep-alive time, or sends more than is
    taken, is disconnected.
    """

    def __init__(self, connect: Connect, size_max: int = CONNECT_SIZE_MAX) -> None:
        super().__init__(connect, size_max)
        self.messages: asyncio.Queue[Publish] = asyncio.Queue(MESSAGES_MAX)
        self._suback: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._unacknowledged: dict[int, asyncio.Future[int]] = {}
        self._packet_id = 0
        self._next_ping: asyncio.TimerHandle | None = None
        self._awaits_answer = False

    async def subscribe(self, topic_filter: str) -> None:
        """Call it once. Raises: ConnectionError: refused, or the connection was lost."""
        subscribe = Subscribe(1, (Subscription(topic_filter),))
        self._write(encode_subscribe(subscribe, self.connect.version))
        await self._suback

    def publish(self, message: Publish) -> None:
        self._write(encode_publish(message, self.connect.version))

    async def deliver(self, message: Publish) -> int:
        """Publish with QoS 1; the reason code of its PUBACK, 0 where MQTT 3.1.1 has none.

        Its packet identifier is in use until then, whether the caller waits or not. Raises: ConnectionError: the
        connection was lost.
        """
        if self.lost.done():
            raise ConnectionError(_CLOSED)
        packet_id = self._free_packet_id()
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._unacknowledged[packet_id] = answer
        self.publish(replace(message, qos=1, packet_id=packet_id))
        return await answer

    def _free_packet_id(self) -> int:
        while True:  # [MQTT-2.2.1-4] one that awaits no acknowledgement; its callers are fewer than there are
            self._packet_id = self._packet_id % PACKET_ID_MAX + 1
            if self._packet_id not in self._unacknowledged:
                return self._packet_id

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._ping_later()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._next_ping is not None:
            self._next_ping.cancel()
        _fail(self._suback, _CLOSED)
        for answer in self._unacknowledged.values():
            _fail(answer, _CLOSED)
        super().connection_lost(exc)

    def _read(self, packets: Iterator[Packet]) -> None:
        version = self.connect.version
        for packet in packets:
            match packet.type:
                case PacketType.SUBACK:
                    codes = decode_suback(packet.body, version).codes
                    if not codes or codes[0] >= _REFUSED:
                        _fail(self._suback, "the broker refused the subscription")
                    elif not self._suback.done():
                        self._suback.set_result(None)
                case PacketType.PUBLISH:
                    message = decode_publish(packet.first, packet.body, version)
                    if message.qos:
                        raise Malformed("A message has a QoS that was not subscribed to.")
                    self.messages.put_nowait(message)
                case PacketType.PUBACK:
                    acks.check_acknowledgement(packet.first, packet.body, version)
                    answer = self._unacknowledged.pop(acks.packet_id_of(packet.body), None)
                    if answer is None:
                        raise Malformed("A PUBACK is for no message.")
                    if not answer.done():
                        answer.set_result(packet.body[2] if version == V5 and len(packet.body) > 2 else 0)
                case PacketType.PINGRESP:
                    self._awaits_answer = False
                case _:
                    raise Malformed("A packet that this client does not expect, such as a DISCONNECT.")

    def _break_off(self) -> None:
        super()._break_off()
        if self._transport is not None:
            self._transport.abort()

    def _ping_later(self) -> None:
        if self.connect.keep_alive:
            self._next_ping = asyncio.get_running_loop().call_later(self.connect.keep_alive, self._ping)

    def _ping(self) -> None:
        if self._awaits_answer:
            self._break_off()
            return
        self._awaits_answer = True
        self._write(acks.PINGREQ)
        self._ping_later()


def _fail(waiting: asyncio.Future[Any], problem: str) -> None:
    if not waiting.done():
        waiting.set_exception(ConnectionError(problem))
        waiting.exception()  # retrieved: nobody may await it
