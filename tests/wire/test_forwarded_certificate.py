"""Certificates as nginx, HAProxy, Traefik and Envoy forward them, cut at every byte and with something added."""

import base64
import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from fleet.wire.errors import WireError
from fleet.wire.forwarded_certificate import (
    CHAIN_MAX,
    VALUE_SIZE_MAX,
    from_base64,
    from_emqx,
    from_escaped_pem,
    from_traefik,
    from_xfcc,
)


def certificate(name: str) -> bytes:
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime(2026, 3, 1, tzinfo=UTC)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), 1, now, now + timedelta(days=1))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


DER, OTHER = certificate("cam-1"), certificate("ca")
B64 = base64.b64encode(DER).decode()
PEM = x509.load_der_x509_certificate(DER).public_bytes(Encoding.PEM).decode()
ESCAPED = quote(PEM, safe="")
ENVOY = quote(PEM, safe="-")
HASH = hashlib.sha256(DER).hexdigest()
XFCC = f'By=spiffe://x/y;Hash={HASH};Cert="{ENVOY}";Subject="CN=a\\"b,O=c;d";URI=;DNS=a.example'

WHOLE = [
    (from_escaped_pem, ESCAPED),
    (from_escaped_pem, ENVOY),
    (from_escaped_pem, quote(PEM.replace("\n", "\r\n"), safe="")),
    (from_base64, B64),
    (from_traefik, B64),
    (from_traefik, quote(B64, safe="")),
    (from_traefik, f"{B64},{base64.b64encode(OTHER).decode()}"),
    (from_emqx, B64),
    (from_emqx, base64.b64encode(PEM.encode()).decode()),
    (from_xfcc, XFCC),
    (from_xfcc, f"Cert={ENVOY}"),
    (from_xfcc, f'cert="{ENVOY}";hash={HASH.upper()}'),
]
Read = Callable[[str], bytes]


@pytest.mark.parametrize(("read", "value"), WHOLE)
def test_the_clients_own_certificate_is_read(read: Read, value: str) -> None:
    assert read(value) == DER


@pytest.mark.parametrize(("read", "value"), WHOLE)
def test_cut_anywhere_it_is_refused_or_whole(read: Read, value: str) -> None:
    for end in range(len(value)):
        try:
            assert read(value[:end]) == DER
        except WireError:
            continue


@pytest.mark.parametrize("read", [from_escaped_pem, from_base64, from_traefik, from_xfcc])
@pytest.mark.parametrize(
    "value",
    ["", "%", "%zz", "\x00", "é", "\udcff", ",", ";", "=", "Cert=", 'Cert="', "A" * VALUE_SIZE_MAX, "MAA=", " " + B64],
)
def test_what_is_no_certificate(read: Read, value: str) -> None:
    with pytest.raises(WireError):
        read(value)


def test_every_cut_of_the_der_itself() -> None:
    for end in range(len(DER)):
        with pytest.raises(WireError):
            from_base64(base64.b64encode(DER[:end]).decode())


@pytest.mark.parametrize(
    ("read", "value"),
    [
        (from_escaped_pem, ESCAPED * 2),
        (from_escaped_pem, PEM),
        (from_escaped_pem, PEM.replace("\n", "\t")),
        (from_escaped_pem, quote(ESCAPED, safe="")),
        (from_escaped_pem, quote("x" + PEM, safe="")),
        (from_escaped_pem, quote(PEM.replace("CERTIFICATE", "PUBLIC KEY"), safe="")),
        (from_escaped_pem, B64),
        (from_base64, f"{B64},{B64}"),
        (from_base64, ESCAPED),
        (from_base64, B64 + "A"),
        (from_base64, base64.b64encode(DER + b"\0").decode()),
        (from_traefik, f"{B64},"),
        (from_traefik, f",{B64}"),
        (from_traefik, f"{B64},MAA="),
        (from_traefik, ",".join([B64] * (CHAIN_MAX + 1))),
        (from_traefik, B64 + "%2"),
        (from_xfcc, f"{XFCC},{XFCC}"),
        pytest.param(from_xfcc, f"Hash={HASH}", id="hash-alone"),  # the same id in every process: the key is random
        (from_xfcc, f'Cert="{ENVOY}";Cert="{ENVOY}"'),
        (from_xfcc, f'Hash={HASH};Hash={HASH};Cert="{ENVOY}"'),
        (from_xfcc, f'Hash={"0" * 64};Cert="{ENVOY}"'),
        (from_xfcc, f'Cert="{ENVOY}"x'),
        (from_xfcc, ENVOY),
    ],
)
def test_two_certificates_and_other_forms_are_refused(read: Read, value: str) -> None:
    with pytest.raises(WireError):
        read(value)
