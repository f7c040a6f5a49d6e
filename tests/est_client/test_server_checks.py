"""What a client checks of a server: pins, dates by a better clock, and what OpenSSL checks for it."""

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from fleet.est_client.client import EstClient, Policy
from fleet.est_client.errors import BadConfig, EstBadAnswer, EstUntrusted
from fleet.est_client.server_checks import ServerTime, parse_pin, pin_of, validity_of
from fleet.wire.errors import WireError
from tests.device_agent.fleet_parts import Authority, key_pem, pem
from tests.device_agent.wild_servers import answers, http, read_request, tls_server

NOW = datetime.now(UTC)
ELSE = "sha256:" + "0f" * 32


def pin(certificate: x509.Certificate) -> str:
    digest = hashes.Hash(hashes.SHA256())
    digest.update(certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
    return f"sha256:{digest.finalize().hex()}"


def ask(port: int, authority: Authority, **policy: Any) -> None:
    """Passes if the server is trusted: what it says is no answer of EST."""
    with pytest.raises(EstBadAnswer, match="no content type"):
        EstClient(f"https://localhost:{port}", authority.ca_file, policy=Policy(20, 0, **policy)).cacerts()


def refuse(port: int, authority: Authority, says: str, **policy: Any) -> None:
    with pytest.raises(EstUntrusted, match=says):
        EstClient(f"https://localhost:{port}", authority.ca_file, policy=Policy(20, 0, **policy)).cacerts()


def test_a_pin_is_the_servers_or_its_anchors(authority: Authority) -> None:
    requests: list[bytes] = []

    def behave(stream: ssl.SSLSocket) -> None:
        requests.append(read_request(stream))
        stream.sendall(http("200 OK"))

    with tls_server(authority, behave) as port:
        ask(port, authority, pins=(ELSE, pin(authority.server)))
        ask(port, authority, pins=(pin(authority.root), ELSE))
        count = len(requests)
        refuse(port, authority, "among the pins", pins=(ELSE,))
        refuse(port, authority, f"its key, {pin(authority.server)}", pins=(pin(authority.issuing),))
    assert not any(requests[count:])  # refused before anything was sent


@pytest.mark.parametrize(
    ("at", "says"), [(timedelta(days=400), "has expired"), (timedelta(days=-400), "is not valid yet"), (None, "")]
)
def test_dates_by_a_better_clock(authority: Authority, at: timedelta | None, says: str) -> None:
    with tls_server(authority, answers(http("200 OK"))) as port:
        if at is None:
            ask(port, authority, at=NOW)
            return
        refuse(port, authority, says, at=NOW + at)


@pytest.mark.parametrize("usages", [[ExtendedKeyUsageOID.CLIENT_AUTH], [ExtendedKeyUsageOID.OCSP_SIGNING]])
def test_a_certificate_of_another_usage_is_no_servers(
    authority: Authority, tmp_path: Path, usages: list[x509.ObjectIdentifier]
) -> None:
    """A device's certificate, of the same CA, with a server's name in it."""
    serve_with(authority, tmp_path, usages, trusted=False)


@pytest.mark.parametrize("usages", [[], [ExtendedKeyUsageOID.SERVER_AUTH]])
def test_a_servers_usage_or_none(authority: Authority, tmp_path: Path, usages: list[x509.ObjectIdentifier]) -> None:
    """RFC 5280, 4.2.1.12: without the extension every use is allowed."""
    serve_with(authority, tmp_path, usages, trusted=True)


def serve_with(authority: Authority, folder: Path, usages: list[x509.ObjectIdentifier], *, trusted: bool) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(authority.issuing.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - timedelta(hours=1))
        .not_valid_after(NOW + timedelta(hours=9))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=True)
    )
    if usages:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    twin = Authority(folder / "twin")
    twin.server_file.write_bytes(pem(builder.sign(authority.issuing_key, hashes.SHA256()), authority.issuing))
    twin.server_key_file.write_bytes(key_pem(key))
    with tls_server(twin, answers(http("200 OK"))) as port:
        if trusted:
            ask(port, authority)
        else:
            refuse(port, authority, "purpose")


def test_the_systems_store_is_never_trusted(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Authority(tmp_path / "other")
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca_file))
    monkeypatch.setenv("SSL_CERT_DIR", str(authority.folder))
    with tls_server(authority, answers(http("200 OK"))) as port:
        refuse(port, other, "certificate")


@pytest.mark.parametrize("text", ["", "sha256:", ELSE[:-1], ELSE + "0", "sha1:" + "0f" * 20, "0f" * 32, ELSE + "\nx"])
def test_no_pins(text: str) -> None:
    with pytest.raises(BadConfig, match="not a pin"):
        parse_pin(text)


def test_a_pin_in_any_case() -> None:
    assert parse_pin(f" {ELSE.upper()} ") == ELSE


def test_of_a_certificate(authority: Authority) -> None:
    for certificate in (authority.root, authority.issuing, authority.server):
        whole = certificate.public_bytes(Encoding.DER)
        assert pin_of(whole) == pin(certificate)
        assert validity_of(whole) == (certificate.not_valid_before_utc, certificate.not_valid_after_utc)
    for length in range(len(whole)):
        for read in (pin_of, validity_of):
            with pytest.raises(WireError):
                read(whole[:length])


@pytest.mark.parametrize("date", ["", "x", "Mon, 99 Foo 2026 25:61:61 GMT", "1" * 9999])
def test_a_date_that_cannot_be_read_is_none(authority: Authority, date: str) -> None:
    assert ServerTime.of(date, authority.server.public_bytes(Encoding.DER)) is None


def test_a_date(authority: Authority) -> None:
    whole = authority.server.public_bytes(Encoding.DER)
    said = ServerTime.of("Sun, 06 Nov 1994 08:49:37 GMT", whole)
    assert said is not None
    assert said.at == datetime(1994, 11, 6, 8, 49, 37, tzinfo=UTC)
    assert (said.begin, said.end) == validity_of(whole)
    assert ServerTime.of("Sun, 06 Nov 1994 08:49:37 GMT", b"") is None
