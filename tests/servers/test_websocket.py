"""MQTT over WebSocket: the opening handshake, frames cut anywhere, what ends a connection, and the gateway below it."""

import asyncio
import logging
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong, TextMessage

from fleet.domain.access import Act
from fleet.servers.gateway import Limits, close_reasons
from fleet.servers.websocket import handshake as handshake_module
from fleet.servers.websocket.handshake import REQUEST_SIZE_MAX, OpeningHandshake, Refusal, UpgradeRefused
from fleet.servers.websocket.server import over_websocket
from fleet.servers.websocket.transport import (
    EMPTY_FRAMES_PER_SECOND_MAX,
    FRAMES_AT_ONCE_MAX,
    FRAMES_PER_SECOND_MAX,
)
from fleet.services import revocation
from fleet.wire.mqtt.codes import V5, V311, PacketType
from fleet.wire.mqtt.connect import Connect, decode_connack, encode_connect
from fleet.wire.mqtt.publish import Publish, encode_publish
from fleet.wire.mqtt.reader import Packet
from tests.servers.gateway_fixtures import GatewayHarness, Wire, now, open_gateway, peer_of, populate, up
from tests.servers.websocket_line import (
    ACCEPTED,
    BINARY,
    CLOSE,
    FIN,
    PAGE,
    PING,
    PONG,
    TEXT,
    Line,
    frame,
    request,
)
from tests.waiting import PATIENCE_SECONDS

# The opening handshake


@pytest.mark.parametrize(
    "asked",
    [
        request(),
        request(Upgrade="WebSocket", Connection="keep-alive, upgrade"),
        request(Sec_WebSocket_Protocol="mqttv3.1, mqtt"),
        request(Sec_WebSocket_Extensions="permessage-deflate; client_max_window_bits"),
        request(Origin=PAGE),
        request(Origin="https://fleet.example:8884"),  # paho says where it connects
        request(Host="FLEET.example:8884", Origin="https://fleet.example:8884"),
    ],
)
def test_a_request_for_mqtt_is_accepted_however_it_is_cut(asked: bytes) -> None:
    for cut in range(1, len(asked)):
        handshake = OpeningHandshake([PAGE])
        assert handshake.feed(asked[:cut]) is None
        answer = handshake.feed(asked[cut:])
        assert answer is not None
        assert answer.startswith(b"HTTP/1.1 101 ")
        assert answer.endswith(ACCEPTED)  # no extension is among it


M = handshake_module


@pytest.mark.parametrize(
    ("asked", "refusal"),
    [
        (request("GET / HTTP/1.1"), M.BAD_PATH),
        (request("GET /mqtt/ HTTP/1.1"), M.BAD_PATH),
        (request("GET /mqtt?x HTTP/1.1"), M.BAD_PATH),
        (request("GET https://fleet.example/mqtt HTTP/1.1"), M.BAD_PATH),
        (request("POST /mqtt HTTP/1.1"), M.BAD_METHOD),
        (request("GET /mqtt HTTP/1.0"), M.BAD_REQUEST),
        (request("GET /mqtt HTTP/2.0"), M.BAD_REQUEST),
        (request("GET /mqtt"), M.BAD_REQUEST),
        (request(Host=None), M.BAD_REQUEST),
        (request(Content_Length="1"), M.BAD_REQUEST),
        (request(Content_Length="x"), M.BAD_REQUEST),
        (request(Transfer_Encoding="chunked"), M.BAD_REQUEST),
        (request() + b"\x82", M.BAD_REQUEST),
        (request(Upgrade=None), M.NO_UPGRADE),
        (request(Upgrade="h2c"), M.NO_UPGRADE),
        (request(Connection="close"), M.NO_UPGRADE),
        (request(Sec_WebSocket_Version=None), M.NO_UPGRADE),
        (request(Sec_WebSocket_Version="8"), M.NO_UPGRADE),
        (request(Sec_WebSocket_Key=None), M.BAD_KEY),
        (request(Sec_WebSocket_Key="short"), M.BAD_KEY),
        (request(Sec_WebSocket_Key="dGhlIHNhbXBsZSBub25jZQ=="[:-4]), M.BAD_KEY),
        (request(sec_websocket_key="dGhlIHNhbXBsZSBub25jZQ=="), M.BAD_KEY),  # twice
        (request(Sec_WebSocket_Protocol=None), M.NO_MQTT),
        (request(Sec_WebSocket_Protocol="MQTT"), M.NO_MQTT),
        (request(Sec_WebSocket_Protocol="mqttv3.1"), M.NO_MQTT),
        (request(Origin="https://evil.example"), M.BAD_ORIGIN),
        (request(Origin="null"), M.BAD_ORIGIN),
        (request(Origin="http://fleet.example:8884"), M.BAD_ORIGIN),
        (request(Origin=PAGE, origin="https://evil.example"), M.BAD_ORIGIN),
        (request(Cookie="x" * REQUEST_SIZE_MAX), M.TOO_LARGE),
        (b"\x16\x03\x01" + b"x" * 20 + b"\r\n\r\n", M.BAD_REQUEST),
        (encode_connect(Connect(V5, "cam-1")) + b"\r\n\r\n", M.BAD_REQUEST),
    ],
)
def test_any_other_request_is_refused_at_its_end(asked: bytes, refusal: Refusal) -> None:
    with pytest.raises(UpgradeRefused) as refused:
        OpeningHandshake([PAGE]).feed(asked)
    assert refused.value.refusal == refusal
    handshake = OpeningHandshake([PAGE])
    with pytest.raises(UpgradeRefused):
        for byte in asked:
            handshake.feed(bytes((byte,)))
    assert refusal.encode().startswith(b"HTTP/1.1 4")


def test_a_request_without_end_is_refused_at_its_limit() -> None:
    handshake, line = OpeningHandshake([]), b"X: " + b"x" * 95 + b"\r\n"
    assert handshake.feed(b"GET /mqtt HTTP/1.1\r\n") is None
    for _ in range(REQUEST_SIZE_MAX // len(line)):
        assert handshake.feed(line) is None
    with pytest.raises(UpgradeRefused, match="too large"):
        handshake.feed(line)


# Frames


PACKETS = [
    encode_connect(Connect(V5, "cam-1")),
    up("cam-1", b"x" * 130, V5, 1),
    Packet(0xC0, b"").encode(),
    up("cam-1", bytes(range(0, 256, 16)), V5),
]
MQTT = b"".join(PACKETS)


def stream_of(sizes: list[int]) -> bytes:
    """MQTT in frames of these sizes, each a message or a fragment of one, with control frames between them."""
    parts, at, inside = [], 0, False
    for number, size in enumerate([*sizes, len(MQTT)]):
        payload, at = MQTT[at : at + size], at + size
        is_last = at >= len(MQTT)
        final = is_last or number % 3 == 0
        parts.append(frame((FIN if final else 0) | (0 if inside else BINARY), payload, mask=struct.pack("!I", number)))
        inside = not final
        parts.append(frame(FIN | (PING if number % 2 else PONG), b"hello"))
        if is_last:
            break
    return b"".join(parts)


async def test_packets_cross_frames_and_fragments_however_the_stream_is_cut() -> None:
    stream = stream_of([1, 5, 0, 40, 7, 130, 2])
    for cut in range(len(stream) + 1):
        line = Line()
        line.transport.data_received(stream[:cut])
        line.transport.data_received(stream[cut:])
        assert line.stream.got == MQTT
        assert {type(event) for event in line.received()} == {Pong}
        assert not line.refused
        assert not line.raw.ends
    line = Line()
    for byte in stream:
        line.transport.data_received(bytes((byte,)))
    assert line.stream.got == MQTT


async def test_what_one_read_brings_is_given_at_once() -> None:
    line = Line()
    line.transport.data_received(stream_of([1, 5, 40]))
    assert line.stream.batches == 1
    line.transport.data_received(frame(FIN | BINARY))  # nothing in it
    assert line.stream.batches == 1


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536, 300_000])
async def test_what_the_session_writes_is_one_binary_message(size: int) -> None:
    line = Line()
    line.transport.write(bytearray(b"x" * size))
    if size:
        messages = line.received()
        assert all(isinstance(message, BytesMessage) for message in messages)
        assert b"".join(message.data for message in messages) == b"x" * size  # type: ignore[attr-defined]
        assert [message.message_finished for message in messages].count(True) == 1  # type: ignore[attr-defined]


BAD_FRAMES = {
    "no mask": (frame(FIN | BINARY, b"abc", mask=None), 1002),
    "text": (frame(FIN | TEXT, b"abc"), 1003),
    "text, empty": (frame(FIN | TEXT), 1003),
    "text in fragments": (frame(TEXT, b"ab"), 1003),
    "text that is no UTF-8": (frame(FIN | TEXT, b"\xff\xff"), 1007),
    "compressed": (frame(FIN | 0x40 | BINARY, b"abc"), 1002),
    "reserved bit": (frame(FIN | 0x10 | BINARY, b"abc"), 1002),
    "unknown frame": (frame(FIN | 0x3, b"abc"), 1002),
    "unknown control frame": (frame(FIN | 0xB, b""), 1002),
    "continuation of nothing": (frame(FIN, b"abc"), 1002),
    "message within a message": (frame(BINARY) + frame(FIN | BINARY, b"b"), 1002),
    "ping in fragments": (frame(PING, b"abc"), 1002),
    "ping too long": (frame(FIN | PING, b"x" * 126), 1002),
    "size longer than needed": (frame(FIN | BINARY, b"abc", size=b"\x7e\0\x03"), 1002),
    "size of eight bytes for two": (frame(FIN | BINARY, b"abc", size=b"\x7f" + bytes(6) + b"\x01\0"), 1002),
    "size with a sign": (frame(FIN | BINARY, b"abc", size=b"\x7f\x80" + bytes(7)), 1002),
    "close of one byte": (frame(FIN | CLOSE, b"\x03"), 1002),
    "close with a code that is none": (frame(FIN | CLOSE, b"\x03\xed"), 1002),
    "close with a reason that is no UTF-8": (frame(FIN | CLOSE, b"\x03\xe8\xff"), 1007),
    "close": (frame(FIN | CLOSE, b"\x03\xe9bye"), 1001),
    "pings": (frame(FIN | PING) * (EMPTY_FRAMES_PER_SECOND_MAX + 1), 1008),
    "pongs": (frame(FIN | PONG, b"x") * (EMPTY_FRAMES_PER_SECOND_MAX + 1), 1008),
    "frames with nothing in them": (frame(FIN | BINARY) * (EMPTY_FRAMES_PER_SECOND_MAX + 1), 1008),
    "fragments with nothing in them": (frame(BINARY) + frame(0) * EMPTY_FRAMES_PER_SECOND_MAX, 1008),
}


@pytest.mark.parametrize(("bad", "code"), BAD_FRAMES.values(), ids=BAD_FRAMES)
async def test_what_ends_a_connection_ends_it_with_its_code(bad: bytes, code: int) -> None:
    line = Line()
    line.transport.data_received(frame(FIN | BINARY, b"\x30\x05half") + bad + frame(FIN | BINARY, b"never"))
    assert line.stream.got == b"\x30\x05half"  # what came before is delivered
    assert line.closed_with() == code
    assert line.transport.is_closing()
    assert len(line.refused) == (0 if code == 1001 else 1)
    line.transport.data_received(frame(FIN | BINARY, b"never"))
    line.transport.write(b"never")
    line.transport.close()
    assert line.raw.ends == ["close"]
    line.transport.connection_lost(None)
    assert line.stream.events == ["made", "lost"]
    assert line.stream.got == b"\x30\x05half"


@pytest.mark.parametrize("name", ["no mask", "text", "compressed", "ping in fragments", "close of one byte", "close"])
async def test_and_however_it_is_cut(name: str) -> None:
    bad, code = BAD_FRAMES[name]
    for cut in range(1, len(bad)):
        line = Line()
        line.transport.data_received(bad[:cut])
        line.transport.data_received(bad[cut:])
        assert line.closed_with() == code
        assert not line.stream.got


async def test_a_frame_of_any_size_is_passed_on_as_it_comes() -> None:
    line = Line()
    line.transport.data_received(frame(FIN | BINARY, b"abc", size=b"\x7f\x7f" + b"\xff" * 7))
    assert line.stream.got == b"abc"
    for _ in range(100):
        line.transport.data_received(b"x" * 1000)
    assert len(line.stream.got) == 100_003
    assert not line.raw.ends


async def test_many_frames_of_one_read_take_several_turns_of_the_loop() -> None:
    small, turn = frame(FIN | BINARY, b"x"), asyncio.sleep
    line = Line()
    line.transport.data_received(small * (2 * FRAMES_AT_ONCE_MAX + 1))
    assert (len(line.stream.got), line.raw.is_paused) == (FRAMES_AT_ONCE_MAX, True)
    line.transport.data_received(small)  # behind the others
    line.transport.pause_reading()
    line.transport.resume_reading()
    assert (len(line.stream.got), line.raw.is_paused) == (FRAMES_AT_ONCE_MAX, True)
    await turn(0)
    assert (len(line.stream.got), line.raw.is_paused) == (2 * FRAMES_AT_ONCE_MAX, True)
    await turn(0)
    assert (len(line.stream.got), line.raw.is_paused) == (2 * FRAMES_AT_ONCE_MAX + 2, False)
    line.transport.data_received(small * FRAMES_AT_ONCE_MAX)
    line.transport.pause_reading()
    await turn(0)
    assert line.raw.is_paused  # by the session
    line.transport.resume_reading()
    line.transport.data_received(small * (FRAMES_AT_ONCE_MAX + 1))
    line.transport.close()
    got = len(line.stream.got)
    await turn(0)
    assert (len(line.stream.got), line.closed_with()) == (got, 1000)


async def test_frames_beyond_a_seconds_wait_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    line, clock = Line(), 1000.0
    monkeypatch.setattr(line.transport._loop, "time", lambda: clock, raising=False)

    async def turns() -> None:
        for _ in range(FRAMES_PER_SECOND_MAX // FRAMES_AT_ONCE_MAX + 2):
            await asyncio.sleep(0)

    for _ in range(FRAMES_PER_SECOND_MAX + 9):  # each in a read of its own
        line.transport.data_received(frame(FIN | BINARY, b"x"))
    await turns()
    assert (len(line.stream.got), line.raw.is_paused) == (FRAMES_PER_SECOND_MAX, True)
    clock += 1
    await turns()
    assert (len(line.stream.got), line.raw.is_paused) == (FRAMES_PER_SECOND_MAX + 9, False)


async def test_many_pings_get_one_answer_and_none_while_the_client_does_not_read() -> None:
    line = Line()
    line.send(Ping(b"1"), Ping(b"2"))
    assert line.received() == [Pong(b"2")]
    line.transport.pause_writing()
    line.send(Ping(b"3"))
    assert not line.raw.sent
    line.transport.resume_writing()
    line.send(Ping(b"4"))
    assert line.received() == [Pong(b"4")]
    assert line.stream.events == ["made", "pause", "resume"]


async def test_pings_at_their_rate_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    line, clock = Line(), 1000.0
    monkeypatch.setattr(line.transport._loop, "time", lambda: clock, raising=False)
    for _ in range(3):
        line.transport.data_received(frame(FIN | PING) * EMPTY_FRAMES_PER_SECOND_MAX)
        clock += 1
    assert not line.raw.ends


async def test_a_session_that_closes_says_so_and_hears_nothing_more() -> None:
    line = Line()
    line.stream.on_data = line.transport.close
    line.send(BytesMessage(b"one"), Ping(b""), TextMessage("no"))
    assert line.stream.got == b"one"
    assert line.closed_with() == 1000
    line = Line()
    line.transport.abort()
    assert line.raw.ends == ["abort"]
    line.transport.close()
    line.transport.connection_lost(ConnectionResetError())
    assert line.stream.events == ["made", "lost"]


async def test_nothing_is_written_once_the_client_has_sent_its_close_frame() -> None:
    line = Line()
    line.stream.on_data = lambda: line.transport.write(b"answer")
    line.send(BytesMessage(b"one"), CloseConnection(1001))
    assert line.closed_with() == 1001
    line = Line()

    def refuse() -> None:
        line.transport.write(b"refused")
        line.transport.close()

    line.stream.on_data = refuse
    line.send(BytesMessage(b"one"), CloseConnection(1001))
    assert line.closed_with() == 1000


async def test_what_is_written_together_is_sent_together() -> None:
    line, calls = Line(), []

    def together(act: Any, data: bytes) -> None:
        calls.append(data)
        act(data)

    line.transport.together(line.transport.write, b"one")  # below it is a transport that sends by itself
    line.raw.together = together  # type: ignore[attr-defined]
    line.transport.together(line.transport.write, b"two")
    assert calls == [b"two"]
    assert [event.data for event in line.received()] == [b"one", b"two"]  # type: ignore[attr-defined]


async def test_before_the_handshake_nothing_is_written_but_its_answer() -> None:
    line = Line(opened=False)
    line.transport.write(b"early")
    line.transport.data_received(b"GET /other HTTP/1.1\r\nHost: a\r\n\r\n")
    assert line.raw.sent == M.BAD_PATH.encode()
    assert line.raw.ends == ["close"]
    assert line.refused == [("bad-path", "")]
    line = Line(opened=False)
    line.transport.close()
    line.transport.data_received(request())
    assert (line.raw.sent, line.raw.ends) == (M.UNAVAILABLE.encode(), ["close"])


# The gateway below it


class WebSocketWire(Wire):
    """A device's end: MQTT packets out of frames, and into them."""

    def __init__(self) -> None:
        super().__init__()
        self.frames = Connection(ConnectionType.CLIENT)
        self.head = b""
        self.close_code: int | None = None
        self.accepted = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.write(request())

    def data_received(self, data: bytes) -> None:
        if b"\r\n\r\n" not in self.head:
            self.head += data
            head, _, data = self.head.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 101 ")
            self.accepted.set()
        self.frames.receive_data(data)
        for event in self.frames.events():
            if isinstance(event, BytesMessage):
                super().data_received(bytes(event.data))
            elif isinstance(event, CloseConnection):
                self.close_code = event.code

    def send(self, data: bytes) -> None:
        self.transport.write(self.frames.send(BytesMessage(data)))


async def dial(h: GatewayHarness, held: Any, counters: Counter[str] | None = None) -> WebSocketWire:
    factory, peer = over_websocket(h.gateway.protocol, (), Counter() if counters is None else counters), peer_of(held)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: factory(peer), "127.0.0.1", 0)
    h.servers.append(server)
    _, wire = await loop.create_connection(WebSocketWire, "127.0.0.1", server.sockets[0].getsockname()[1])
    await asyncio.wait_for(wire.accepted.wait(), PATIENCE_SECONDS)
    return wire


async def live(h: GatewayHarness, held: Any, version: int) -> tuple[WebSocketWire, Any]:
    wire = await dial(h, held)
    connect = encode_connect(Connect(version, held.holder))
    wire.send(connect[:7])
    wire.send(connect[7:])
    side = await asyncio.wait_for(h.broker.sessions.get(), PATIENCE_SECONDS)
    assert (await side.packet()).type is PacketType.CONNECT
    side.raw.clear()
    side.send(b"\x20\x03\x00\x00\x00" if version == V5 else b"\x20\x02\x00\x00")
    assert decode_connack((await wire.packet()).body, version).code == 0
    return wire, side


@pytest.mark.parametrize("version", [V311, V5])
async def test_a_session_has_the_rules_of_any_other_and_ends_in_mid_packet(tmp_path: Path, version: int) -> None:
    async with open_gateway(tmp_path) as h:
        (cam,) = await populate(h.registry, "cam-1")
        wire, side = await live(h, cam, version)
        wire.send(up("other", b"denied", version) + up("cam-1", b"x", version)[:-1])
        wire.send(up("cam-1", b"x", version)[-1:])
        assert await side.received(1) == up("cam-1", b"x", version)
        side.send(encode_publish(Publish("devices/cam-1/down/t", b"down"), version))
        assert (await wire.packet()).type is PacketType.PUBLISH
        wire.send(up("cam-1", b"half", version)[:9])
        wire.transport.write(wire.frames.send(CloseConnection(1001)))
        await wire.until_closed()
        assert wire.close_code == 1001
        left = await side.until_closed()
        assert [packet.type for packet in left] == [PacketType.PUBLISH]  # and no DISCONNECT: the will is the broker's
        assert h.gateway.sessions == 0


@pytest.mark.parametrize(
    ("last", "code", "counter"),
    [
        (up("other", b"denied", V5, 1), 1001, "mqtt.session.client-gone"),
        (Packet(0xF0, b"").encode(), 1000, "mqtt.session.protocol-error"),
    ],
)
async def test_what_needs_an_answer_right_before_a_close_frame(
    tmp_path: Path, last: bytes, code: int, counter: str
) -> None:
    async with open_gateway(tmp_path) as h:
        (cam,) = await populate(h.registry, "cam-1")
        wire, side = await live(h, cam, V5)
        wire.transport.write(wire.frames.send(BytesMessage(last)) + wire.frames.send(CloseConnection(1001)))
        await wire.until_closed()
        assert wire.close_code == code
        await side.until_closed()
        assert h.gateway.sessions == 0
        assert h.gateway.stats[counter] == 1


async def test_a_revoked_device_gets_its_disconnect_and_a_close_frame(tmp_path: Path) -> None:
    async with open_gateway(tmp_path) as h:
        (cam,) = await populate(h.registry, "cam-1")
        wire, _ = await live(h, cam, V5)
        await revocation.revoke(h.registry, "cam-1", act=Act("operator", now()))
        last = await wire.until_closed()
        assert [packet.type for packet in last] == [PacketType.DISCONNECT]
        assert wire.close_code == 1000


async def test_a_client_that_asks_for_nothing_ends_with_the_deadline_for_connect(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with open_gateway(tmp_path, limits=Limits(connect_seconds_max=0.05)) as h:
        (cam,) = await populate(h.registry, "cam-1")
        wire = await dial(h, cam)  # the opening handshake is no CONNECT
        await wire.until_closed()
        assert h.gateway.sessions == 0
    assert close_reasons.CONNECT_TIMEOUT.code in caplog.text


async def test_what_a_client_sent_wrong_is_named_in_the_log_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with open_gateway(tmp_path) as h:
        (cam,) = await populate(h.registry, "cam-1")
        counters = Counter[str]()
        wire = await dial(h, cam, counters)
        wire.transport.write(frame(FIN | BINARY, b"x", mask=None))
        await wire.until_closed()
        assert wire.close_code == 1002
        assert counters == {"wss.refused.bad-frame": 1}
    assert "wss.refused" in caplog.text
    assert "bad-frame" in caplog.text
