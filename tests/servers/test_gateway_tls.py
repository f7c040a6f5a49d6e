"""The gateway behind the real TLS listener: who is who by the handshake alone, with paho too."""

import asyncio
import contextlib
import hashlib
import re
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest
from cryptography.x509 import load_pem_x509_certificate
from msgspec.structs import replace

from fleet.domain.access import Act
from fleet.domain.changes import Change
from fleet.domain.device import Device, DeviceId, DeviceState
from fleet.domain.writes import AddCredential, Insert
from fleet.servers.gateway import close_reasons
from fleet.servers.gateway.outcome_log import TEXT_MAX
from fleet.services import revocation
from fleet.tls.contexts import ContextSource
from fleet.tls.listener import Listener, ListenerLimits, listen
from fleet.wire.mqtt import acks
from fleet.wire.mqtt.codes import V5, V311, PacketType, Reason
from fleet.wire.mqtt.connect import Connect, Will, decode_connect, encode_connect
from fleet.wire.mqtt.properties import Property
from fleet.wire.mqtt.publish import Publish, encode_publish
from tests.servers.gateway_fixtures import (
    MODEL,
    GatewayHarness,
    Wire,
    credential,
    last_words,
    now,
    open_gateway,
    operator,
    refused,
)
from tests.servers.paho_client import Paho
from tests.tls.stage import CLIENT_AUTH, Pair, Pki, issue, pki
from tests.waiting import PATIENCE_SECONDS, until


@dataclass
class Street:
    """A gateway behind TLS, and two devices' certificates in `path`."""

    harness: GatewayHarness
    listener: Listener
    path: Path
    pki: Pki
    admitted: list[str]
    """Addresses of clients that the registry has admitted."""

    def context(self, name: str | None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.path / "ca.pem"))
        if name is not None:
            context.load_cert_chain(self.path / f"{name}.pem", self.path / f"{name}.key")
        return context

    async def dial(self, name: str | None) -> Wire:
        _, wire = await asyncio.get_running_loop().create_connection(
            Wire, "127.0.0.1", self.listener.port, ssl=self.context(name), server_hostname="localhost"
        )
        return wire


@pytest.fixture
async def street(tmp_path: Path) -> AsyncIterator[Street]:
    made = pki()
    made.root.write(tmp_path / "ca")
    pairs = {name: issue(name, made.issuing, usages=[CLIENT_AUTH]) for name in ("cam-1", "cam-2", "unknown")}
    pairs["foreign"] = issue("cam-1", made.foreign_root, usages=[CLIENT_AUTH])
    for name, pair in pairs.items():
        pair.write(tmp_path / name, made.issuing)
    admitted: list[str] = []
    async with open_gateway(tmp_path, on_admitted=admitted.append) as built:
        await built.registry.commit(
            Change(operator("x"), (Insert(MODEL), *known("cam-1", pairs), *known("cam-2", pairs)))
        )
        listener = await listen(
            built.gateway.protocol,
            ("127.0.0.1", 0),
            contexts=ContextSource(made.context(now=now())),
            limits=ListenerLimits(),
        )
        yield Street(built, listener, tmp_path, made, admitted)
        listener.close()
        await built.gateway.close()
        await asyncio.wait_for(listener.wait_closed(), PATIENCE_SECONDS)


def known(name: str, pairs: dict[str, Pair]) -> tuple[Insert, AddCredential]:
    der = pairs[name].der
    held = replace(credential(name), der=der, fingerprint=hashlib.sha256(der).digest())
    return Insert(Device(DeviceId(name), MODEL.name, DeviceState.ACTIVE, now())), AddCredential(held)


async def test_the_certificate_says_who_it_is(street: Street) -> None:
    wire = await street.dial("cam-1")
    wire.send(encode_connect(Connect(V311, "cam-1", username="cam-2", password=b"x")))
    side = await asyncio.wait_for(street.harness.broker.sessions.get(), PATIENCE_SECONDS)
    connect = decode_connect((await side.packet()).body)
    assert (connect.client_id, connect.username, connect.password) == ("cam-1", "cam-1", None)
    side.send(b"\x20\x02\x00\x00")
    assert (await wire.packet()).type is PacketType.CONNACK
    packet = encode_publish(Publish("devices/cam-1/up/t", bytes(200_000), 1, 7), V311)
    wire.send(packet)
    assert (await side.packet()).encode() == packet


async def test_a_certificate_of_our_ca_that_the_registry_does_not_know(street: Street) -> None:
    wire = await street.dial("unknown")
    wire.send(encode_connect(Connect(V5, "unknown")))
    (packet,) = await wire.until_closed()
    assert packet.body[1] == Reason.NOT_AUTHORIZED


@pytest.mark.parametrize(
    ("packet", "code", "claimed"),
    [
        (encode_connect(Connect(V5, "cam-2")), "client-id-mismatch", " client_id=cam-2"),
        (encode_connect(Connect(V5, "\u202e" + "x" * 200)), "client-id-mismatch",
         rf' client_id="\\u202ex{{{TEXT_MAX - 1}}}"'),
        (encode_connect(Connect(V5, "cam-1", will=Will("devices/cam-2/up/t", b""))), "will-refused", ""),
        (b"\x10\x13\x00\x06MQIsdp\x03\x02\x00\x3c\x00\x05cam-1", "unsupported-version", ""),  # MQTT 3.1
        (b"\x10\x11\x00\x04MQTT\x84\x02\x00\x3c\x00\x05cam-1", "unsupported-version", ""),  # a bridge's first try
        (b"\x10\x0a\x00\x04MQTT\x04\x03\x00\x3c", "malformed-connect", ""),
        (encode_connect(Connect(V311, "cam-1", will=Will("t", bytes(65_535)), password=bytes(65_535), username="x")),
         "too-large", ""),
    ],
)  # fmt: skip
async def test_a_refused_connect_is_logged_under_the_certificate(
    street: Street, caplog: pytest.LogCaptureFixture, packet: bytes, code: str, claimed: str
) -> None:
    caplog.set_level("INFO", "fleet.gateway")
    wire = await street.dial("cam-1")
    wire.send(packet)
    await wire.until_closed()
    await street.harness.count(f"mqtt.connect.{code}")
    serial = load_pem_x509_certificate((street.path / "cam-1.pem").read_bytes()).serial_number
    (line,) = [line for line in caplog.messages if line.endswith(f"code={code}")]
    pattern = rf"event=mqtt\.connect device=cam-1 serial={serial:x}{claimed} address=127\.0\.0\.1 ms=\d+ code={code}"
    assert re.fullmatch(pattern, line)


async def test_a_5_0_client_reads_that_its_connect_is_too_large(street: Street) -> None:
    wire = await street.dial("cam-1")
    will = Will("devices/cam-1/up/t", bytes(65_535), properties=((Property.CORRELATION_DATA, bytes(65_535)),))
    wire.send(encode_connect(Connect(V5, "cam-1", will=will)))
    assert await refused(wire, V5) == Reason.PACKET_TOO_LARGE


@pytest.mark.parametrize("name", ["foreign", None])
async def test_no_certificate_of_ours_no_word(street: Street, name: str | None) -> None:
    # In TLS 1.3 the client's own handshake may be done before it hears of the refusal.
    with pytest.raises((OSError, AssertionError)):
        wire = await street.dial(name)
        wire.send(encode_connect(Connect(V311, "cam-1")))
        await wire.packet()
    assert street.harness.gateway.sessions == 0


@pytest.mark.parametrize("name", ["foreign", None])
async def test_nothing_that_a_stranger_sends_reaches_a_session(street: Street, name: str | None) -> None:
    # In TLS 1.3 it may send a large CONNECT with its handshake.
    will = Will("devices/cam-1/up/gone", bytes(65_000))
    with contextlib.suppress(OSError):
        wire = await street.dial(name)
        wire.send(encode_connect(Connect(V311, "cam-1", will=will)))
        await wire.until_closed()
    assert street.harness.gateway.stats == {}
    assert street.harness.gateway.sessions == 0


async def test_a_revocation_is_heard_over_tls(street: Street) -> None:
    wire = await street.dial("cam-1")
    wire.send(encode_connect(Connect(V5, "cam-1")))
    side = await asyncio.wait_for(street.harness.broker.sessions.get(), PATIENCE_SECONDS)
    await side.packet()
    side.send(b"\x20\x03\x00\x00\x00")
    await wire.packet()
    wire.raw.clear()
    await revocation.revoke(street.harness.registry, "cam-1", act=Act("operator", now()))
    await wire.until_closed()
    assert wire.raw == last_words(close_reasons.device_ended("revoked"))


async def test_only_who_is_admitted_makes_its_address_known(street: Street) -> None:
    admitted = street.admitted
    await revocation.revoke(street.harness.registry, "cam-2", act=Act("operator", now()))
    for name in ("cam-2", "unknown"):
        wire = await street.dial(name)
        wire.send(encode_connect(Connect(V5, name)))
        await wire.until_closed()
    assert admitted == []
    wire = await street.dial("cam-1")
    wire.send(encode_connect(Connect(V5, "cam-1")))
    await until(lambda: admitted)
    assert admitted == ["127.0.0.1"]


async def test_a_device_that_does_not_read_takes_no_memory(street: Street) -> None:
    wire = await street.dial("cam-1")
    wire.send(encode_connect(Connect(V311, "cam-1")))
    side = await asyncio.wait_for(street.harness.broker.sessions.get(), PATIENCE_SECONDS)
    await side.packet()
    side.send(b"\x20\x02\x00\x00")
    await wire.packet()
    wire.transport.pause_reading()
    message = encode_publish(Publish("devices/cam-1/down/x", bytes(60_000)), V311)
    for _ in range(300):
        side.send(message)
    (session,) = street.harness.gateway.context.open_sessions
    assert session._device is not None
    device, broker = session._device, session._broker
    await until(lambda: device.blocked)
    assert device._transport.get_write_buffer_size() < 1_000_000
    assert broker is not None
    wire.transport.resume_reading()
    await wire.received(300 * len(message))


@pytest.mark.parametrize("version", [mqtt.MQTTv311, mqtt.MQTTv5])
async def test_paho_on_mutual_tls(street: Street, version: int) -> None:
    client = Paho("cam-2", version)
    client.client.tls_set_context(street.context("cam-2"))

    async def broker() -> None:
        side = await asyncio.wait_for(street.harness.broker.sessions.get(), PATIENCE_SECONDS)
        await side.packet()
        side.send(b"\x20\x03\x00\x00\x00" if version == V5 else b"\x20\x02\x00\x00")
        publish = await side.packet()
        side.send(acks.acknowledge(acks.PUBACK, 1, version))
        assert publish.type is PacketType.PUBLISH

    answering = asyncio.create_task(broker())
    assert await client.connect("localhost", street.listener.port) == 0
    assert await client.publish("devices/cam-2/up/t", b"x") == 0
    await answering
    await client.close()
