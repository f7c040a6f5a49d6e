"""Every decoder of bytes that a stranger may send, each as one function that takes any bytes at all.

What a decoder may do with them: give a value, or refuse with an error of its own tree. Anything else, a hang or a crash
of the library below it included, is a finding.
"""

import asyncio
import base64
import json
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from ipaddress import ip_address

from fleet.domain.audit_proof import read_proof
from fleet.domain.device_filter import parse_filter, parse_time
from fleet.domain.errors import FleetError
from fleet.domain.model_rules import checked_rules, rules_json, rules_of
from fleet.est_client.server_checks import pin_of, validity_of
from fleet.servers.admin.reading import decode_json
from fleet.servers.est.paths import route
from fleet.servers.est.proof import parse_basic
from fleet.servers.refusals import HttpRefused
from fleet.servers.websocket.handshake import OpeningHandshake, UpgradeRefused
from fleet.wire import der, est
from fleet.wire.csr import decode_csr
from fleet.wire.csrattrs import decode_csrattrs
from fleet.wire.encodings.pem import blocks
from fleet.wire.encodings.reading import read
from fleet.wire.errors import WireError
from fleet.wire.mqtt.connect import decode_connack, decode_connect
from fleet.wire.mqtt.publish import decode_publish
from fleet.wire.mqtt.reader import PacketReader
from fleet.wire.mqtt.subscribe import decode_suback, decode_subscribe, decode_unsubscribe
from fleet.wire.mqtt.topics import is_topic_filter, topic_name
from fleet.wire.ocsp import read_request
from fleet.wire.proxy_protocol import read_header
from fleet.wire.serial import messages
from fleet.wire.serial.frames import FrameReader
from fleet.wire.trust_update import decode_trust_update
from tests.servers.websocket_line import PAGE, Line

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
Target = Callable[[bytes], None]


def csr(data: bytes) -> None:
    with suppress(WireError):
        decode_csr(data)


def csr_in_a_body(data: bytes) -> None:
    with suppress(WireError):
        decode_csr(est.decode_body(data))


def certs_only(data: bytes) -> None:
    with suppress(WireError):
        est.decode_certs_only(data)


def media_type(data: bytes) -> None:
    with suppress(WireError):
        est.parse_media_type(data.decode("latin-1"))


def csrattrs(data: bytes) -> None:
    with suppress(WireError):
        decode_csrattrs(data)


def trust_update(data: bytes) -> None:
    """By its signer's word, and a TLS server's certificate as an agent walks it (pins, dates)."""
    with suppress(WireError):
        assert decode_trust_update(data).retired
    with suppress(WireError):
        assert pin_of(data).startswith("sha256:")
    with suppress(WireError):
        validity_of(data)


def ocsp_request(data: bytes) -> None:
    with suppress(WireError):
        assert read_request(data).certificates


def certificate_file(data: bytes) -> None:
    with suppress(WireError):
        read(data)
    with suppress(WireError):
        read(data, b"secret")


def pem(data: bytes) -> None:
    with suppress(WireError):
        list(blocks(data))


def walk(data: bytes) -> None:
    for ber in (False, True):
        with suppress(WireError):
            for element in der.walk(der.read_element(data, 0, len(data), ber=ber)):
                if element.tag == der.OBJECT_IDENTIFIER:
                    der.dotted_oid(element.content)


def mqtt_stream(data: bytes) -> None:
    """The first byte says where the stream is cut."""
    reader = PacketReader(size_max=4096)
    step = (data[0] if data else 0) + 1
    with suppress(WireError):
        for at in range(1, len(data), step):
            for packet in reader.feed(data[at : at + step]):
                assert len(packet.body) <= 4096
            assert reader.held <= 4096 + 5 + step


def mqtt_packets(data: bytes) -> None:
    with suppress(WireError):
        decode_connect(data)
    for version in (4, 5):
        for decode in (decode_connack, decode_subscribe, decode_suback, decode_unsubscribe):
            with suppress(WireError):
                decode(data, version)
        with suppress(WireError):
            decode_publish(data[0] if data else 0, data[1:], version)


def mqtt_topics(data: bytes) -> None:
    with suppress(WireError):
        is_topic_filter(topic_name(data))
    is_topic_filter(data.decode("utf-8", "surrogateescape"))


def serial_frames(data: bytes) -> None:
    """Cut as in `mqtt_stream`; what comes out whole goes to the messages."""
    reader = FrameReader()
    step = (data[0] if data else 0) + 1
    for at in range(1, len(data), step):
        for found in reader.feed(data[at : at + step]):
            if isinstance(found, bytes):
                serial_messages(found)


def serial_messages(data: bytes) -> None:
    with suppress(WireError):
        messages.read_header(data)
    with suppress(WireError):
        messages.decode(data)


def authorization(data: bytes) -> None:
    with suppress(FleetError):
        parse_basic(data.decode("latin-1"))
    with suppress(FleetError):
        parse_basic("Basic " + base64.b64encode(data).decode())


def est_path(data: bytes) -> None:
    text = data.decode("latin-1")
    for method in ("GET", "POST"):
        with suppress(HttpRefused):
            route(method, text)
        with suppress(HttpRefused):
            route(method, f"/.well-known/est/{text}")


def json_body(data: bytes) -> None:
    """What the API's decoder takes, the standard library takes too, and means the same."""
    try:
        value = decode_json(data)
    except HttpRefused:
        return
    assert value == json.loads(data)


def model_rules(data: bytes) -> None:
    try:
        given = decode_json(data)
        rules = rules_of(given if isinstance(given, dict) else {"profile": given})
        assert rules_of(json.loads(json.dumps(rules_json(checked_rules(rules))))) == rules
    except (HttpRefused, FleetError):
        return


def device_filter(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    with suppress(FleetError):
        parse_filter(text, NOW)
    with suppress(FleetError):
        parse_time(text, NOW)


def audit_proof(data: bytes) -> None:
    with suppress(FleetError):
        read_proof(data)


def proxy_header(data: bytes) -> None:
    with suppress(WireError):
        header = read_header(data)
        assert header is None or (header.size <= len(data) and (header.client is None or ip_address(header.client)))


def websocket_request(data: bytes) -> None:
    """The first byte says where it is cut."""
    handshake, cut = OpeningHandshake([PAGE]), (data[0] if data else 0) + 1
    with suppress(UpgradeRefused):
        for part in filter(None, (data[1:cut], data[cut:])):
            if (answer := handshake.feed(part)) is not None:
                assert answer.startswith(b"HTTP/1.1 101 ")
                return


def websocket_frames(data: bytes) -> None:
    """Behind the opening handshake; cut as in `mqtt_stream`."""

    async def feed() -> None:
        line, step = Line(), (data[0] if data else 0) + 1
        for at in range(1, len(data), step):
            line.transport.data_received(data[at : at + step])
        assert line.raw.ends in ([], ["close"])

    asyncio.run(feed())


TARGETS: dict[str, Target] = {
    target.__name__: target
    for target in (
        csr,
        csr_in_a_body,
        certs_only,
        media_type,
        csrattrs,
        trust_update,
        ocsp_request,
        certificate_file,
        pem,
        walk,
        mqtt_stream,
        mqtt_packets,
        mqtt_topics,
        proxy_header,
        websocket_request,
        websocket_frames,
        serial_frames,
        serial_messages,
        authorization,
        est_path,
        json_body,
        model_rules,
        device_filter,
        audit_proof,
    )
}
