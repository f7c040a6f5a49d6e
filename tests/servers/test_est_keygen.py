"""serverkeygen and csrattrs over real TLS (RFC 7030, 4.4 and 4.5)."""

import base64
import email.message
import email.parser
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_private_key

from fleet.ca.keys import generate_key
from fleet.domain.access import Act
from fleet.domain.device import Model
from fleet.domain.model_rules import rules_of
from fleet.services import inventory
from fleet.wire import der
from fleet.wire.csr import build_csr
from fleet.wire.csrattrs import CsrAttributes, decode_csrattrs
from fleet.wire.est import decode_body, decode_certs_only
from tests.servers.est_fixtures import Answer, EstHarness, basic, csr_for, open_est, renewal_csr
from tests.wire.test_key_package import opened

CN = "2.5.4.3"
ASYMMETRIC = "1.2.840.113549.1.9.16.2.54"
SYMMETRIC = "1.2.840.113549.1.9.16.2.37"
CAPABILITIES = "1.2.840.113549.1.9.15"
KINDS = ("EC-P256", "EC-P384", "RSA-2048+", "Ed25519")


@pytest.fixture
async def est(tmp_path: Path) -> AsyncIterator[EstHarness]:
    async with open_est(tmp_path) as est:
        await model(est, "probe", {"profile": {"server_keygen": True}}, ("EC-P256", "EC-P384", "RSA-2048+", "Ed25519"))
        yield est


async def model(
    est: EstHarness, name: str, rules: dict[str, Any], key_types: tuple[str, ...] = ("EC-P256", "EC-P384")
) -> None:
    new = Model(name, key_types=key_types, rules=rules_of(rules))
    await inventory.add_model(est.registry, new, act=Act("test", est.clock()))


def parts(answer: Answer) -> list[tuple[str, bytes]]:
    """Content type and decoded content of each part, read by the standard library."""
    head = f"Content-Type: {answer.header('Content-Type')}\r\n\r\n".encode()
    message: email.message.Message = email.parser.BytesParser().parsebytes(head + answer.body)
    payload = message.get_payload()
    assert isinstance(payload, list)
    found = []
    for part in payload:
        assert isinstance(part, email.message.Message)
        content = part.get_payload(decode=True)
        assert isinstance(content, bytes)
        found.append((part["Content-Type"], content))
    return found


def pair_of(answer: Answer) -> tuple[Any, x509.Certificate]:
    """The key that was made and the certificate for it."""
    (key_type, key), (certs_type, certificates) = parts(answer)
    assert (key_type, certs_type) == ("application/pkcs8", "application/pkcs7-mime; smime-type=certs-only")
    [certificate] = decode_certs_only(certificates)
    return load_der_private_key(key, None), certificate


def sealing_csr(name: str, key: Any, identifier: bytes, *, oid: str = ASYMMETRIC, capabilities: bytes = b"") -> bytes:
    """A CSR with the attributes of RFC 7030, 4.4.1: the library writes no sequences into attributes."""
    found = [attribute(oid, der.encode_element(der.OCTET_STRING, identifier))]
    if capabilities:
        found.append(attribute(CAPABILITIES, der.encode_element(der.SEQUENCE, capabilities)))
    attributes = b"".join(sorted(found))  # X.690, 11.6
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]).public_bytes()
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    info = b"\x02\x01\x00" + subject + spki + der.encode_element(der.CONTEXT_0, attributes)
    info = der.encode_element(der.SEQUENCE, info)
    match key:
        case ec.EllipticCurvePrivateKey():
            signature, algorithm = key.sign(info, ec.ECDSA(hashes.SHA256())), der.encode_oid("1.2.840.10045.4.3.2")
        case rsa.RSAPrivateKey():
            signature = key.sign(info, padding.PKCS1v15(), hashes.SHA256())
            algorithm = der.encode_oid("1.2.840.113549.1.1.11") + b"\x05\x00"
        case _:
            signature, algorithm = key.sign(info), der.encode_oid("1.3.101.112")
    algorithm = der.encode_element(der.SEQUENCE, algorithm)
    return der.encode_element(der.SEQUENCE, info + algorithm + der.encode_element(0x03, b"\0" + signature))


def attribute(oid: str, value: bytes) -> bytes:
    return der.encode_element(der.SEQUENCE, der.encode_oid(oid) + der.encode_element(der.SET, value))


async def outcomes_of(est: EstHarness) -> list[str]:
    entries = [row.entry for row in await est.registry.audit()]
    return [entry.outcome for entry in entries if entry.action == "device.serverkeygen"]


def identifier_of(key: Any) -> bytes:
    return x509.SubjectKeyIdentifier.from_public_key(key.public_key()).digest


async def test_a_key_and_its_certificate_come_back_and_work(est: EstHarness) -> None:
    await est.device("p-1", "probe")
    own = generate_key()
    answer = await est.post("serverkeygen", csr_for("p-1", own), basic(await est.token("p-1")))
    assert answer.status == 200, answer.text
    assert answer.header("Cache-Control") == "no-store"
    key, certificate = pair_of(answer)
    assert certificate.public_key() == key.public_key() != own.public_key()
    device = est.identity(certificate, key)
    # It renews as any other, and its next key may be made here too.
    assert (await est.reenroll(renewal_csr(device), device)).status == 200
    again = await est.post("serverkeygen", renewal_csr(device), identity=device)
    assert again.status == 200, again.text
    next_key, next_certificate = pair_of(again)
    assert next_certificate.public_key() == next_key.public_key() != key.public_key()
    entry = (await est.registry.audit())[-1].entry
    assert (entry.actor, entry.action) == ("device p-1", "device.serverkeygen")
    assert (entry.subject, entry.outcome) == ("device p-1", "ok")


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        (ec.generate_private_key(ec.SECP384R1()), ec.EllipticCurvePrivateKey),
        (rsa.generate_private_key(65537, 2048), rsa.RSAPrivateKey),
        (ed25519.Ed25519PrivateKey.generate(), ed25519.Ed25519PrivateKey),
    ],
)
async def test_the_new_key_is_of_the_kind_of_the_csrs(est: EstHarness, key: Any, kind: type[object]) -> None:
    csr = build_csr(key, ((CN, "p-1"),), ())
    answer = await est.post("probe/serverkeygen", csr, basic(await est.token(model="probe")))
    assert answer.status == 200, answer.text
    made, certificate = pair_of(answer)
    assert certificate.public_key() == made.public_key()
    assert isinstance(made, kind)


async def test_who_may_not_have_one(est: EstHarness) -> None:
    await est.device("cam-1")
    refused = await est.post("serverkeygen", csr_for("cam-1"), basic(await est.token("cam-1")))
    assert (refused.status, refused.code) == (403, "keygen-not-open")
    for headers, status in (({}, 401), (basic("0123.abcd"), 401)):
        assert (await est.post("serverkeygen", csr_for("p-1"), headers)).status == status
    token = await est.token(model="probe")
    wrong = build_csr(mldsa.MLDSA44PrivateKey.generate(), ((CN, "p-1"),), ())
    assert (await est.post("serverkeygen", wrong, basic(token))).code == "key-not-allowed"
    spent = await est.post("serverkeygen", csr_for("p-1"), basic(token))
    assert spent.status == 200
    # A lost answer is lost: the key was nowhere but in it, so its certificate is no use to whoever asks again.
    assert (await est.post("serverkeygen", csr_for("p-1"), basic(token))).code == "token-used-up"
    outcomes = await outcomes_of(est)
    assert "keygen-not-open" in outcomes
    assert "token-used-up" in outcomes


@pytest.mark.parametrize("kind", ["ec", "rsa"])
async def test_a_sealed_key_opens_for_the_requester_alone(est: EstHarness, tmp_path: Path, kind: str) -> None:
    own: Any = generate_key() if kind == "ec" else rsa.generate_private_key(65537, 2048)
    csr = sealing_csr("p-1", own, identifier_of(own))
    answer = await est.post("serverkeygen", csr, basic(await est.token(model="probe")))
    assert answer.status == 200, answer.text
    (key_type, sealed), (_, certificates) = parts(answer)
    assert key_type == "application/pkcs7-mime; smime-type=server-generated-key"
    signed_data = opened(tmp_path, sealed, own)
    assert signed_data is not None
    [certificate] = decode_certs_only(certificates)
    made: Any = load_der_private_key(_only_key(signed_data), None)
    assert made.public_key() == certificate.public_key()


async def test_a_csr_that_only_the_library_refuses_gets_a_sealed_key(est: EstHarness) -> None:
    own = generate_key()
    plain = sealing_csr("p-1", own, identifier_of(own))
    ecdsa = der.encode_element(der.SEQUENCE, der.encode_oid("1.2.840.10045.4.3.2"))
    with_null = der.encode_element(der.SEQUENCE, der.encode_oid("1.2.840.10045.4.3.2") + b"\x05\0")
    content = der.only_element(plain, der.SEQUENCE).content.replace(ecdsa, with_null)
    csr = der.encode_element(der.SEQUENCE, content)
    with pytest.raises(ValueError, match="signature_alg"):
        x509.load_der_x509_csr(csr)
    answer = await est.post("serverkeygen", csr, basic(await est.token(model="probe")))
    assert answer.status == 200, answer.text


async def test_the_key_may_be_named_by_the_certificate_presented(est: EstHarness, tmp_path: Path) -> None:
    await est.device("p-1", "probe")
    key = generate_key()
    first = await est.enroll(csr_for("p-1", key), basic(await est.token("p-1")))
    device = est.identity(first.certificates[0], key)
    csr = sealing_csr("p-1", generate_key(), identifier_of(key))
    answer = await est.post("serverkeygen", csr, identity=device)
    assert answer.status == 200, answer.text
    assert opened(tmp_path, parts(answer)[0][1], key) is not None


def _only_key(signed_data: bytes) -> bytes:
    """The PKCS#8 in the AsymmetricKeyPackage of a SignedData."""
    package = list(der.children(list(der.children(der.only_element(signed_data, der.SEQUENCE)))[2]))[1]
    octets = next(iter(der.children(package)))
    return der.only_element(octets.content, der.SEQUENCE).content


async def test_sealing_that_is_impossible_ends_the_request(est: EstHarness) -> None:
    token = basic(await est.token(model="probe", uses=9))
    own, signs_only = generate_key(), ed25519.Ed25519PrivateKey.generate()
    des = der.encode_element(der.SEQUENCE, der.encode_oid("1.2.840.113549.3.7"))
    for csr in (
        sealing_csr("p-1", own, b"a shared secret's name", oid=SYMMETRIC),
        sealing_csr("p-1", own, bytes(20)),
        sealing_csr("p-1", own, identifier_of(own), capabilities=des),
        sealing_csr("p-1", signs_only, identifier_of(signs_only)),
    ):
        answer = await est.post("serverkeygen", csr, token)
        assert (answer.status, answer.code) == (400, "sealing-impossible"), answer.text
    assert await est.registry.devices() == []
    outcomes = await outcomes_of(est)
    assert outcomes.count("sealing-impossible") >= 1


async def test_a_cipher_that_is_known_is_chosen(est: EstHarness, tmp_path: Path) -> None:
    own = generate_key()
    des = der.encode_element(der.SEQUENCE, der.encode_oid("1.2.840.113549.3.7"))
    aes128 = der.encode_element(der.SEQUENCE, der.encode_oid("2.16.840.1.101.3.4.1.2"))
    csr = sealing_csr("p-1", own, identifier_of(own), capabilities=des + aes128)
    answer = await est.post("serverkeygen", csr, basic(await est.token(model="probe")))
    sealed = parts(answer)[0][1]
    assert der.encode_oid("2.16.840.1.101.3.4.1.2") in sealed
    assert opened(tmp_path, sealed, own) is not None


# csrattrs


async def test_csrattrs_are_those_of_the_model(est: EstHarness) -> None:
    await model(
        est,
        "bound",
        {"profile": {"binding": True, "organisation": "Acme", "extended_key_usages": ["clientAuth", "eapOverLAN"]}},
        ("EC-P384", "Ed25519"),
    )
    wanted = CsrAttributes(("EC-P384", "Ed25519"), ("1.3.6.1.5.5.7.3.2", "1.3.6.1.5.5.7.3.14"), binding=True)
    answer = await est.send("GET", "/.well-known/est/bound/csrattrs")
    assert (answer.status, answer.header("Content-Type")) == (200, "application/csrattrs")
    assert answer.header("Content-Transfer-Encoding") == "base64"
    assert decode_csrattrs(decode_body(answer.body)) == wanted
    # Without a label: of the token's model, of the token's device, of the certificate's device.
    await est.device("b-1", "bound")
    for token in (await est.token(model="bound"), await est.token("b-1")):
        answer = await est.send("GET", "/.well-known/est/csrattrs", headers=basic(token))
        assert decode_csrattrs(decode_body(answer.body)) == wanted
    device = await est.enrolled("cam-1")
    answer = await est.send("GET", "/.well-known/est/csrattrs", identity=device)
    assert decode_csrattrs(decode_body(answer.body)) == CsrAttributes(("EC-P256", "EC-P384"), ("1.3.6.1.5.5.7.3.2",))


async def test_who_says_nothing_is_told_nothing(est: EstHarness) -> None:
    for path in ("csrattrs", "nonesuch/csrattrs"):
        answer = await est.send("GET", f"/.well-known/est/{path}")
        assert (answer.status, answer.body) == (204, b"")
    for path in ("csrattrs", "cam/csrattrs"):
        for wrong, code in (
            (basic("0123456789ab.wrong"), "bad-token"),
            ({"Authorization": "Bearer x"}, "bad-authorization"),
        ):
            answer = await est.send("GET", f"/.well-known/est/{path}", headers=wrong)
            assert (answer.status, answer.code) == (401, code)
    libest = await est.send("GET", "/.well-known/est/cam/csrattrs", headers={"User-Agent": "libest 3"})
    assert max(map(len, libest.body.splitlines())) <= 64
    assert decode_body(libest.body).endswith(der.encode_oid("2.16.840.1.101.3.4.2.1"))
    assert decode_csrattrs(decode_body(libest.body)).key_types == ("EC-P256", "EC-P384")


async def test_libest_gets_no_generated_key_that_it_cannot_read(est: EstHarness) -> None:
    """Refused before a certificate is issued that nobody could use."""
    await model(est, "made", {"profile": {"server_keygen": True}}, ("EC-P256", "RSA-2048+"))
    headers = {**basic(await est.token(model="made")), "User-Agent": "libest 3"}
    answer = await est.post("serverkeygen", csr_for("b-1"), headers)
    assert (answer.status, answer.code) == (400, "key-too-short")
    assert "RSA" in answer.text
    assert await est.registry.device("b-1") is None
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    assert (await est.post("serverkeygen", build_csr(key, ((CN, "b-1"),), ()), headers)).status == 200


# Binding


async def test_a_binding_that_the_model_requires(est: EstHarness) -> None:
    await model(est, "bound", {"profile": {"binding": True}})
    token = basic(await est.token(model="bound", uses=2))
    refused = await est.enroll(csr_for("b-1"), token)
    assert (refused.status, refused.code) == (400, "binding-missing")
    assert (await est.enroll(build_csr(generate_key(), ((CN, "b-1"),), (), ""), token)).code == "binding-missing"
    foreign = build_csr(generate_key(), ((CN, "b-1"),), (), base64.b64encode(bytes(32)).decode())
    assert (await est.enroll(foreign, token)).code == "not-this-connection"
    answer = await bound(est, "simpleenroll", "b-1", token)
    assert answer.status == 200, answer.text
    # A station vouches for its devices: its connection is not theirs.
    station = await est.station("line-9", ("bound",))
    assert (await est.enroll(csr_for("b-2"), identity=station)).status == 200


async def bound(est: EstHarness, operation: str, name: str, headers: dict[str, str]) -> Answer:
    context = est.client_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # the ssl module knows no exporter
    reader, writer = await est.connect(context=context)
    binding = writer.get_extra_info("ssl_object").get_channel_binding("tls-unique")
    body = base64.b64encode(build_csr(generate_key(), ((CN, name),), (), base64.b64encode(binding).decode()))
    lines = [f"POST /.well-known/est/{operation} HTTP/1.1", "Host: localhost", "Connection: close"]
    lines += [f"{key}: {value}" for key, value in {**headers, "Content-Type": "application/pkcs10"}.items()]
    writer.write("\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body)
    answer = Answer(await reader.read())
    writer.close()
    return answer
