import hashlib
from datetime import datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from OpenSSL import SSL

from fleet.ca.authority import create_issuing, create_root
from fleet.ca.issuer import LocalIssuer
from fleet.ca.keys import generate_key
from fleet.domain.credential import CredentialKind
from fleet.domain.enrollment import IssuePermit
from fleet.tls import contexts, engine
from fleet.tls.contexts import ClientTrust, ContextSource, ServerIdentity, TlsContext, server_context
from fleet.tls.errors import HandshakeFailed, Refusal
from fleet.tls.session import TlsSession
from fleet.wire.der import encode_oid, sequence
from tests.odd_certificates import (
    BASIC,
    CA_OF_ONE,
    CERT_SIGN,
    EXTENDED,
    FALSE_IN_FULL,
    SAN,
    USAGE,
    X400_NAME,
    certificate,
    extension,
)
from tests.tls.stage import (
    CLIENT_AUTH,
    DAY,
    NOW,
    TLS12,
    TLS13,
    MemoryClient,
    Pair,
    client_context,
    issue,
    join,
    pki,
)

VERSIONS = [pytest.param(TLS12, id="tls1.2"), pytest.param(TLS13, id="tls1.3")]
OPTIONAL = [pytest.param(True, id="required"), pytest.param(False, id="optional")]


def attempt(context: TlsContext, client: MemoryClient) -> TlsSession:
    """Raises: HandshakeFailed."""
    session = TlsSession(context, "192.0.2.7")
    join(client, session)
    return session


def refusal(context: TlsContext, client: MemoryClient) -> HandshakeFailed:
    session = TlsSession(context, "192.0.2.7")
    with pytest.raises(HandshakeFailed) as caught:
        join(client, session)
    assert session.peer is None
    client.give(session.outgoing())
    with pytest.raises(SSL.Error):  # an alert tells the client, in its handshake or, on TLS 1.3, after it
        client.handshake()
        client.connection.recv(1)
    return caught.value


# Who is believed


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("require", OPTIONAL)
@pytest.mark.parametrize("kind", sorted(pki().bad))
def test_a_bad_certificate_is_refused_also_where_none_is_needed(kind: str, require: bool, version: int) -> None:
    chain = (pki().issuing, pki().server) if kind == "signed-by-a-leaf" else (pki().issuing,)
    client = MemoryClient(client_context(pki().bad[kind], version, chain=chain))
    error = refusal(pki().context(require_client=require), client)
    assert error.reason is Refusal.BAD_CERTIFICATE
    assert error.detail


@pytest.mark.parametrize("version", VERSIONS)
def test_no_certificate_is_refused_where_one_is_needed(version: int) -> None:
    error = refusal(pki().context(), MemoryClient(client_context(None, version)))
    assert error.reason is Refusal.NO_CERTIFICATE


@pytest.mark.parametrize("version", VERSIONS)
def test_no_certificate_is_let_in_where_none_is_needed(version: int) -> None:
    session = attempt(pki().context(require_client=False), MemoryClient(client_context(None, version)))
    assert session.peer is not None
    assert session.peer.certificate_der is None


@pytest.mark.parametrize(
    ("now", "welcome"),
    [
        (NOW - 5 * DAY, True),
        (NOW - DAY, True),  # RFC 5280, 4.1.2.5: the period includes notAfter
        (NOW - DAY + timedelta(seconds=1), False),
        (NOW - 10 * DAY - timedelta(seconds=1), False),
    ],
)
def test_validity_goes_by_the_given_clock(now: datetime, welcome: bool) -> None:
    client = MemoryClient(client_context(pki().bad["expired"]))
    if welcome:
        assert attempt(pki().context(now=now), client).peer is not None
    else:
        assert refusal(pki().context(now=now), client).reason is Refusal.BAD_CERTIFICATE


def test_the_clock_is_read_for_each_connection() -> None:
    times = iter([NOW - 5 * DAY, NOW])
    context = server_context(pki().identity, ClientTrust(pki().anchors), require_client=True, clock=lambda: next(times))
    assert attempt(context, MemoryClient(client_context(pki().bad["expired"]))).peer is not None
    refusal(context, MemoryClient(client_context(pki().bad["expired"])))


def test_an_expired_leaf_is_let_in_where_that_is_asked_for_and_nothing_else_is() -> None:
    lenient = server_context(
        pki().identity, ClientTrust(pki().anchors), require_client=True, clock=lambda: NOW, expired_leaf=True
    )
    expired = attempt(lenient, MemoryClient(client_context(pki().bad["expired"]))).peer
    assert expired is not None
    assert expired.certificate_der is not None
    assert expired.fingerprint == hashlib.sha256(expired.certificate_der).digest()
    for kind, bad in pki().bad.items():
        if kind != "expired":
            refusal(lenient, MemoryClient(client_context(bad)))
    impostor = issue("issuing", ca=True)  # of the name of ours
    forged = issue("client", impostor, usages=[CLIENT_AUTH], begins=NOW - 10 * DAY, ends=NOW - DAY)
    refusal(lenient, MemoryClient(client_context(forged)))


def test_an_expired_issuing_ca_takes_its_certificates_along() -> None:
    client = MemoryClient(client_context(issue("c", pki().issuing, usages=[CLIENT_AUTH], ends=NOW + 4000 * DAY)))
    assert refusal(pki().context(now=NOW + 1001 * DAY), client).reason is Refusal.BAD_CERTIFICATE


def test_the_root_alone_is_enough_when_the_client_sends_the_chain() -> None:
    context = server_context(
        pki().identity, ClientTrust([pki().root.certificate]), require_client=True, clock=lambda: NOW
    )
    with_chain = MemoryClient(client_context(pki().good, chain=(pki().issuing,)))
    peer = attempt(context, with_chain).peer
    assert peer is not None
    assert peer.chain_der == (pki().good.der, pki().issuing.der, pki().root.der)
    assert refusal(context, MemoryClient(client_context(pki().good))).reason is Refusal.BAD_CERTIFICATE


def test_a_chain_of_a_foreign_ca_beside_ours_is_refused() -> None:
    client = MemoryClient(client_context(pki().bad["foreign"], chain=(pki().foreign_root, pki().issuing)))
    assert refusal(pki().context(), client).reason is Refusal.BAD_CERTIFICATE


# What is offered


@pytest.mark.parametrize("version", [SSL.TLS1_VERSION, SSL.TLS1_1_VERSION])
def test_old_versions_are_refused(version: int) -> None:
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_cipher_list(b"ALL:@SECLEVEL=0")
    try:
        context.set_min_proto_version(version)
        context.set_max_proto_version(version)
        client = MemoryClient(context)
        client.handshake()
    except SSL.Error:
        pytest.skip("this engine cannot even ask for so old a version")
    session = TlsSession(pki().context(), "192.0.2.7")
    with pytest.raises(HandshakeFailed):
        session.feed(client.take())


@pytest.mark.parametrize(
    "suites",
    [
        b"ECDHE-ECDSA-AES128-SHA:ECDHE-ECDSA-AES256-SHA384:ECDHE-ECDSA-AES128-SHA256",  # CBC
        b"AES128-GCM-SHA256:AES256-GCM-SHA384",  # no forward secrecy
        b"DHE-RSA-AES128-GCM-SHA256",
        b"ECDHE-ECDSA-AES128-CCM8",
    ],
)
def test_weak_suites_of_tls12_are_refused(suites: bytes) -> None:
    context = client_context(pki().good, TLS12)
    context.set_cipher_list(suites + b":@SECLEVEL=0")
    client = MemoryClient(context)
    client.handshake()
    with pytest.raises(HandshakeFailed) as caught:
        TlsSession(pki().context(), "192.0.2.7").feed(client.take())
    assert caught.value.reason is Refusal.HANDSHAKE


@pytest.mark.parametrize(
    "suite", [b"ECDHE-ECDSA-AES128-GCM-SHA256", b"ECDHE-ECDSA-CHACHA20-POLY1305", b"ECDHE-ECDSA-AES128-CCM"]
)
def test_good_suites_of_tls12_are_spoken(suite: bytes) -> None:
    context = client_context(pki().good, TLS12)
    context.set_cipher_list(suite)
    session = attempt(pki().context(), MemoryClient(context))  # kept, since its peer asks it
    peer = session.peer
    assert peer is not None
    assert peer.cipher == suite.decode()


def test_a_client_that_prefers_chacha20_gets_it() -> None:
    context = client_context(pki().good, TLS13)
    context.set_tls13_ciphersuites(b"TLS_CHACHA20_POLY1305_SHA256:TLS_AES_128_GCM_SHA256")
    session = attempt(pki().context(), MemoryClient(context))  # kept, since its peer asks it
    peer = session.peer
    assert peer is not None
    assert peer.cipher == "TLS_CHACHA20_POLY1305_SHA256"


@pytest.mark.parametrize(
    ("groups", "chosen"),
    [(b"X25519MLKEM768:X25519", "X25519MLKEM768"), (b"X25519", "x25519"), (b"P-256", "secp256r1")],
)
def test_groups(groups: bytes, chosen: str) -> None:
    client = MemoryClient(client_context(pki().good, TLS13, groups=groups))
    session = attempt(pki().context(), client)  # kept, since its peer asks it
    peer = session.peer
    assert peer is not None
    assert peer.group == chosen


# Nothing is resumed


@pytest.mark.parametrize("tickets", [True, False])
@pytest.mark.parametrize("version", VERSIONS)
def test_no_session_is_resumed(version: int, tickets: bool) -> None:
    server = pki().context()
    context = client_context(pki().good, version)
    context.set_session_cache_mode(SSL.SESS_CACHE_BOTH)
    if not tickets:
        context.set_options(SSL.OP_NO_TICKET)
    client = MemoryClient(context)
    session = attempt(server, client)
    session.write(b"x")
    client.give(session.outgoing())
    client.read()  # and with it tickets, if there were any
    kept = client.connection.get_session()
    assert kept is not None

    again = MemoryClient(context, session=kept)
    second = attempt(server, again)
    assert engine.lib.SSL_session_reused(engine.ssl_of(again.connection)) == 0
    assert second.peer is not None
    assert second.peer.certificate_der == pki().good.der


def test_renegotiation_is_not_done() -> None:
    client = MemoryClient(client_context(pki().good, TLS12))
    session = attempt(pki().context(), client)
    client.give(session.outgoing())
    client.handshake()
    client.connection.renegotiate()
    client.handshake()
    assert session.feed(client.take()) == b""
    client.give(session.outgoing())
    with pytest.raises(SSL.Error):
        client.handshake()
    assert session._connection.total_renegotiations() == 0


# Swapping and refusing to be built


def test_a_swapped_context_serves_the_next_connection_only() -> None:
    other: Pair = issue("other server", pki().issuing)
    source = ContextSource(pki().context())
    before = MemoryClient(client_context(pki().good))
    session = TlsSession(source.current, "192.0.2.7")
    before.handshake()
    session.feed(before.take())

    identity = ServerIdentity((other.certificate,), other.key)
    source.swap(server_context(identity, ClientTrust(pki().anchors), require_client=True, clock=lambda: NOW))
    before.give(session.outgoing())
    before.handshake()
    session.feed(before.take())
    assert before.connection.get_peer_certificate(as_cryptography=True) == pki().server.certificate
    after = MemoryClient(client_context(pki().good))
    attempt(source.current, after)
    assert after.connection.get_peer_certificate(as_cryptography=True) == other.certificate


def test_the_key_must_be_the_certificates() -> None:
    identity = ServerIdentity((pki().server.certificate,), pki().good.key)
    with pytest.raises(ValueError, match="private key"):
        server_context(identity, ClientTrust(pki().anchors), require_client=True, clock=lambda: NOW)


def test_a_certificate_and_an_anchor_are_needed() -> None:
    with pytest.raises(ValueError, match="certificate"):
        server_context(
            ServerIdentity((), pki().server.key), ClientTrust(pki().anchors), require_client=True, clock=lambda: NOW
        )
    with pytest.raises(ValueError, match="anchor"):
        server_context(pki().identity, ClientTrust([]), require_client=False, clock=lambda: NOW)


# Whose CA signed


def devices_of(*names: str) -> tuple[list[Pair], list[Pair]]:
    """Issuing CAs of these names below the root of one fleet, and a device of each."""
    root = create_root("Acme", NOW - DAY)
    cas = [Pair(*create_issuing(name, *root, NOW - DAY)) for name in names]
    return cas, [_device(ca) for ca in cas]


def _device(ca: Pair) -> Pair:
    key = generate_key()
    spki = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    digest = hashlib.sha256(spki).digest()
    permit = IssuePermit(CredentialKind.DEVICE, "d-1", "", spki, digest, NOW - DAY, NOW + DAY, "test")
    return Pair(x509.load_der_x509_certificate(LocalIssuer(ca.certificate, ca.key).issue(permit, NOW).der), key)


def test_the_ca_right_above_the_leaf_says_whose_it_is() -> None:
    cas, devices = devices_of("one", "two", "three")
    anchors = [ca.certificate for ca in cas]
    tenants = {cas[0].der: "", cas[1].der: "b"}
    context = server_context(pki().identity, ClientTrust(anchors, tenants), require_client=True, clock=lambda: NOW)
    for device, expected in zip(devices, ("", "b", None), strict=True):
        peer = attempt(context, MemoryClient(client_context(device))).peer
        assert peer is not None
        assert peer.tenant == expected


def test_a_client_names_no_tenant_by_what_it_sends_along() -> None:
    cas, devices = devices_of("one", "two")
    tenants = {cas[0].der: "a", cas[1].der: "b"}
    anchors = [ca.certificate for ca in cas]
    context = server_context(pki().identity, ClientTrust(anchors, tenants), require_client=True, clock=lambda: NOW)
    peer = attempt(context, MemoryClient(client_context(devices[0], chain=(cas[1], cas[0])))).peer
    assert peer is not None
    assert peer.tenant == "a"


def test_two_cas_of_one_name_are_told_apart_by_their_keys() -> None:
    cas, devices = devices_of("same", "same")
    assert cas[0].certificate.subject == cas[1].certificate.subject
    for first, second in ((0, 1), (1, 0)):
        anchors = [cas[first].certificate, cas[second].certificate]
        tenants = {cas[0].der: "a", cas[1].der: "b"}
        context = server_context(pki().identity, ClientTrust(anchors, tenants), require_client=True, clock=lambda: NOW)
        for device, expected in zip(devices, ("a", "b"), strict=True):
            peer = attempt(context, MemoryClient(client_context(device))).peer
            assert peer is not None
            assert peer.tenant == expected


def test_without_tenants_all_are_the_fleets_own() -> None:
    peer = attempt(pki().context(), MemoryClient(client_context(pki().good))).peer
    assert peer is not None
    assert peer.tenant == ""


def test_a_source_looks_before_each_connection() -> None:
    looks = iter(range(9))
    first, second = pki().context(), pki().context()
    source = ContextSource(first)
    source.look = lambda: source.swap(second) if next(looks) else None
    assert source.current is first
    assert source.current is second


FOR_CLIENTS = sequence(encode_oid(CLIENT_AUTH.dotted_string))


@pytest.mark.parametrize(
    ("extensions", "reason"),
    [
        ((extension(BASIC, FALSE_IN_FULL), extension(SAN, X400_NAME)), ""),
        ((extension(BASIC, CA_OF_ONE),), "a CA is no device"),
        ((extension(USAGE, CERT_SIGN),), "key usage does not hold digitalSignature"),
        ((extension(USAGE, b""),), "the certificate's extensions cannot be read"),
        ((), ""),
    ],
)
def test_a_manufacturers_leaf_is_judged_by_what_is_asked_of_it(extensions: tuple[bytes, ...], reason: str) -> None:
    assert contexts._rejection_of_manufacturer(certificate(generate_key(), *extensions)) == reason


@pytest.mark.parametrize(
    ("extensions", "reason"),
    [
        ((extension(EXTENDED, FOR_CLIENTS), extension(SAN, X400_NAME), extension(BASIC, FALSE_IN_FULL)), ""),
        ((extension(SAN, X400_NAME),), "extended key usage clientAuth is missing"),
        ((extension(EXTENDED, b""),), "the certificate's extensions cannot be read"),
    ],
)
def test_a_leaf_of_ours_is_judged_by_its_extended_key_usage(extensions: tuple[bytes, ...], reason: str) -> None:
    assert contexts._rejection(certificate(generate_key(), *extensions)) == reason


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("offered", "agreed"),
    [
        ([b"x-amzn-mqtt-ca"], b"x-amzn-mqtt-ca"),
        ([b"h2", b"x-amzn-mqtt-ca", b"mqtt"], b"mqtt"),
        ([], b""),
    ],
)
def test_a_client_that_offers_one_of_our_protocols_gets_it(version: int, offered: list[bytes], agreed: bytes) -> None:
    trust, alpn = ClientTrust(pki().anchors), (b"mqtt", b"x-amzn-mqtt-ca")
    context = server_context(pki().identity, trust, require_client=True, clock=lambda: NOW, alpn=alpn)
    client_side = client_context(pki().good, version)
    if offered:
        client_side.set_alpn_protos(offered)
    client = MemoryClient(client_side)
    assert attempt(context, client).peer is not None
    assert client.connection.get_alpn_proto_negotiated() == agreed


@pytest.mark.parametrize("version", VERSIONS)
def test_a_client_that_offers_other_protocols_alone_gets_the_alert_for_it(version: int) -> None:
    """RFC 7301, 3.2: the server SHALL respond with a fatal no_application_protocol."""
    trust = ClientTrust(pki().anchors)
    context = server_context(pki().identity, trust, require_client=True, clock=lambda: NOW, alpn=(b"mqtt",))
    client_side = client_context(pki().good, version)
    client_side.set_alpn_protos([b"http/1.1", b"h2"])
    client, session = MemoryClient(client_side), TlsSession(context, "192.0.2.7")
    with pytest.raises(HandshakeFailed, match="no application protocol"):
        join(client, session)
    client.give(session.outgoing())
    with pytest.raises(SSL.Error, match="no application protocol"):
        client.handshake()
    other = client_context(pki().good, version)
    other.set_alpn_protos([b"mqtt"])
    assert attempt(context, MemoryClient(other)).peer is not None, "what one client did is not held against another"
