"""Well-formed examples for each target: where a fuzzer starts from."""

import base64
import itertools
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, pkcs12
from cryptography.x509.ocsp import OCSPRequestBuilder

from fleet.ca.authority import create_issuing, create_root
from fleet.domain.model_rules import DEFAULT_RULES, rules_json
from fleet.wire import est
from fleet.wire.csr import build_csr
from fleet.wire.csrattrs import CsrAttributes, encode_csrattrs
from fleet.wire.mqtt.codes import Reason
from fleet.wire.mqtt.connect import Connack, Connect, Will, encode_connack, encode_connect
from fleet.wire.mqtt.publish import Publish, encode_publish
from fleet.wire.proxy_protocol import V2_SIGNATURE
from fleet.wire.serial.frames import encode_frame
from fleet.wire.serial.vectors import MESSAGES
from fleet.wire.trust_update import sign_trust_update
from tests.certs_only import encode_certs_only
from tests.fuzz.targets import TARGETS
from tests.servers.websocket_line import BINARY, CLOSE, FIN, PAGE, PING, frame, request

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def seeds(target: str) -> Iterator[bytes]:
    """A few for `target`, one of TARGETS."""
    made = _SEEDS.get(target)
    yield from made() if made is not None else ()


def _csrs() -> Iterator[bytes]:
    keys = (
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP384R1()),
        rsa.generate_private_key(65537, 2048),
        ed25519.Ed25519PrivateKey.generate(),
        mldsa.MLDSA44PrivateKey.generate(),
    )
    for key in keys:
        yield build_csr(key, (("2.5.4.3", "cam-7"), ("2.5.4.5", "SN1")), (), "Y2hhbGxlbmdl")
    names = ("DNS:a.example", "IP:192.0.2.1", "URI:urn:x:y", "HW:1.3.6.1.4.1.4128.1:0a0b")
    yield build_csr(keys[0], (("2.5.4.3", "cam-7"),), names)


def _bodies() -> Iterator[bytes]:
    return (est.encode_body(csr, wrap=bool(n % 2)) for n, csr in enumerate(_csrs()))


def _messages() -> Iterator[bytes]:
    root = create_root("Acme", NOW)
    issuing = create_issuing("Acme", *root, NOW)
    yield encode_certs_only([root[0]])
    yield encode_certs_only([root[0], issuing[0]])


def _files() -> Iterator[bytes]:
    root, key = create_root("Acme", NOW)
    yield root.public_bytes(Encoding.DER)
    yield root.public_bytes(Encoding.PEM)
    yield key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    yield key.private_bytes(Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    yield pkcs12.serialize_key_and_certificates(b"a name", key, root, None, NoEncryption())
    yield encode_certs_only([root])
    yield base64.encodebytes(root.public_bytes(Encoding.DER))


def _trust_updates() -> Iterator[bytes]:
    root, key = create_root("Acme", datetime(2030, 1, 1, tzinfo=UTC))
    yield sign_trust_update(["sha256:" + "0f" * 32], [root], key, datetime(2030, 1, 1, tzinfo=UTC))
    yield root.public_bytes(Encoding.DER)


def _csrattrs() -> Iterator[bytes]:
    kinds = ("EC-P256", "RSA-2048+", "Ed25519", "ML-DSA-44")
    yield encode_csrattrs(CsrAttributes())
    yield encode_csrattrs(CsrAttributes(kinds, ("1.3.6.1.5.5.7.3.2",), "Acme", binding=True))


def _ocsp_requests() -> Iterator[bytes]:
    for size, algorithm in ((20, hashes.SHA1()), (32, hashes.SHA256())):  # noqa: S303  what clients name a CA by
        builder = OCSPRequestBuilder().add_certificate_by_hash(b"n" * size, b"k" * size, 0x40AB, algorithm)
        yield builder.build().public_bytes(Encoding.DER)
        nonce = x509.OCSPNonce(b"n" * 32)
        yield builder.add_extension(nonce, critical=False).build().public_bytes(Encoding.DER)


def _mqtt() -> Iterator[bytes]:
    for version in (4, 5):
        will = Will("devices/cam-7/up/gone", b"gone", 1, False)
        yield encode_connect(Connect(version, "cam-7", True, 60, will))
        yield encode_connect(Connect(version, "cam-7", False, 0))
        yield encode_connack(Connack(False, Reason.SUCCESS), version)
        yield encode_publish(Publish("devices/cam-7/up/x", b"hello", 1, 7), version)


def _streams() -> Iterator[bytes]:
    for step, packets in itertools.product((0, 6, 255), (list(_mqtt()),)):
        yield bytes((step,)) + b"".join(packets)


def _serial_payloads() -> Iterator[bytes]:
    return (vector.payload for vector in MESSAGES)


def _serial_streams() -> Iterator[bytes]:
    whole = b"boot log\r\n" + b"".join(encode_frame(payload) for payload in _serial_payloads())
    return (bytes((step,)) + whole for step in (0, 30, 255))


def _rules() -> Iterator[bytes]:
    rules = rules_json(DEFAULT_RULES)
    yield json.dumps(rules).encode()
    moment = (NOW + timedelta(days=1)).isoformat()
    rules["renewal"]["campaign"] = {"before": moment, "start": moment, "spread_seconds": 60}
    rules["profile"] |= {"dns_name": "{id}.example.com", "uris": ["urn:example:{id}"], "organisation": "Acme"}
    rules["admission"] |= {"webhook": "https://hook.example/x", "paths": ["claim", "idevid"]}
    yield json.dumps(rules).encode()


def _proxy_headers() -> Iterator[bytes]:
    yield b"PROXY TCP4 198.51.100.7 10.0.0.1 50001 8883\r\n"
    yield b"PROXY TCP6 2001:db8::7 ::1 50001 8883\r\n"
    addresses = bytes((198, 51, 100, 7, 10, 0, 0, 1, 195, 81, 34, 179))
    tls = b"\x20\0\x0e\x07\0\0\0\0\x22\0\x06device"
    yield V2_SIGNATURE + b"\x21\x11\0\x1d" + addresses + tls
    yield V2_SIGNATURE + b"\x20\0\0\0"


def _websocket_requests() -> Iterator[bytes]:
    yield b"\x10" + request()
    yield b"\x40" + request(Origin=PAGE, Sec_WebSocket_Extensions="permessage-deflate")


def _websocket_frames() -> Iterator[bytes]:
    yield b"\x07" + frame(BINARY, b"\xc0") + frame(FIN | PING, b"hello") + frame(FIN, b"\0") + frame(FIN | CLOSE)


_SEEDS: dict[str, Callable[[], Iterator[bytes]]] = {
    "csr": _csrs,
    "csr_in_a_body": _bodies,
    "certs_only": _messages,
    "media_type": lambda: iter((b"application/pkcs10", b'application/pkcs7-mime; smime-type="certs-only"')),
    "csrattrs": _csrattrs,
    "trust_update": _trust_updates,
    "ocsp_request": _ocsp_requests,
    "certificate_file": _files,
    "pem": _files,
    "walk": _files,
    "mqtt_stream": _streams,
    "mqtt_packets": _mqtt,
    "mqtt_topics": lambda: iter((b"devices/+/up/#", b"$share/g/a/b", b"a//b")),
    "proxy_header": _proxy_headers,
    "websocket_request": _websocket_requests,
    "websocket_frames": _websocket_frames,
    "serial_frames": _serial_streams,
    "serial_messages": _serial_payloads,
    "authorization": lambda: iter((b"Basic Y2FtLTc6c2VjcmV0", b"cam-7:0123456789ab.secret")),
    "est_path": lambda: iter((b"cacerts", b"cam/simpleenroll", b"renewal-info/" + b"ab" * 32, b"renewal-info/AAEC.AQ")),
    "json_body": lambda: iter((b'{"name": "cam", "n": [1, -2.5e3, null, true, "\\u00e9"]}',)),
    "model_rules": _rules,
    "device_filter": lambda: iter((b"model=cam2 and lot=L7 and expires<30d", b"2026-12-01T12:00:00Z", b"group='a b'")),
}
assert set(_SEEDS) <= set(TARGETS)
