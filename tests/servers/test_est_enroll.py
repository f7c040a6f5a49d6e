"""Enrollment over real TLS: who gets a certificate, who does not, and what the certificate holds."""

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fleet.ca.authority import create_issuing, create_root
from fleet.ca.issuer import LocalIssuer
from fleet.ca.keys import generate_key
from fleet.domain.access import Act
from fleet.domain.credential import CredentialState
from fleet.services import inventory, revocation
from fleet.wire.csr import build_csr
from tests.servers.est_fixtures import Answer, EstHarness, basic, csr_for, open_est, renewal_csr


@pytest.fixture
async def est(tmp_path: Path) -> AsyncIterator[EstHarness]:
    async with open_est(tmp_path) as est:
        yield est


def verdict(answer: Answer) -> tuple[int, str]:
    return answer.status, answer.code


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_device_enrolls_by_token_and_renews_by_certificate(est: EstHarness, version: ssl.TLSVersion) -> None:
    await est.device("cam-1", serial="SN1")
    key, token = generate_key(), await est.token("cam-1")
    context = est.client_context()
    context.minimum_version = context.maximum_version = version
    headers = {"Content-Type": "application/pkcs10", **basic(token, "cam-1")}
    body = base64.b64encode(csr_for("cam-1", key))
    path = "/.well-known/est/{}"
    answer = await est.send("POST", path.format("simpleenroll"), body, headers, context=context)
    assert answer.status == 200, answer.text
    [certificate] = answer.certificates
    assert certificate.public_key() == key.public_key()
    first = est.identity(certificate, key)
    context.load_cert_chain(first.cert_file, first.key_file)
    body = base64.b64encode(renewal_csr(first))
    answer = await est.send("POST", path.format("cam/simplereenroll"), body, headers, context=context)
    assert answer.status == 200, answer.text
    assert answer.certificates[0].subject == certificate.subject


async def test_a_token_of_a_model_enrolls_through_the_models_label(est: EstHarness) -> None:
    token = await est.token(model="cam", uses=9)
    assert (await est.enroll(csr_for("new-1"), basic(token), label="cam")).status == 200
    assert verdict(await est.enroll(csr_for("new-2"), basic(token), label="pump")) == (403, "not-your-model")
    assert verdict(await est.enroll(csr_for("new-2"), basic(token), label="nonesuch")) == (403, "not-your-model")


async def test_a_station_enrolls_for_its_models(est: EstHarness) -> None:
    station = await est.station("line-1", ("cam",))
    assert (await est.enroll(csr_for("new-1"), identity=station)).status == 200
    assert verdict(await est.enroll(csr_for("new-2"), identity=station, label="pump")) == (403, "not-your-model")
    assert verdict(await est.reenroll(renewal_csr(station), station)) == (403, "not-a-device")
    await revocation.revoke_station(est.registry, "line-1", act=Act("test", est.clock()))
    assert verdict(await est.enroll(csr_for("new-2"), identity=station)) == (403, "certificate-revoked")


# A CSR contributes its public key


async def test_nothing_that_a_csr_asks_for_is_granted(est: EstHarness) -> None:
    key = generate_key()
    key_cert_sign = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
    csr = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(
            x509.Name(
                [
                    x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Admins"),
                    x509.NameAttribute(NameOID.COMMON_NAME, "cam-1"),
                    x509.NameAttribute(NameOID.SERIAL_NUMBER, "another's"),
                ]
            )
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(key_cert_sign, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.DNSName("localhost"), x509.UniformResourceIdentifier("spiffe://admin"), x509.RFC822Name("a@b.c")]
            ),
            critical=False,
        )
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.DER)
    )
    await est.device("cam-1", serial="SN1")
    answer = await est.enroll(csr, basic(await est.token("cam-1")))
    assert answer.status == 200, answer.text
    plain = await est.enrolled("cam-2", serial="SN2")
    [certificate] = answer.certificates
    assert certificate.subject.rfc4514_string() == "2.5.4.5=SN1,CN=cam-1"
    assert {(e.oid, e.critical) for e in certificate.extensions} == {
        (e.oid, e.critical) for e in plain.certificate.extensions
    }
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert b"localhost" not in certificate.public_bytes(Encoding.DER)
    assert b"Admins" not in certificate.public_bytes(Encoding.DER)


# Binding to the connection


async def test_a_channel_binding_that_is_there_must_be_right(est: EstHarness) -> None:
    token = await est.token(model="cam", uses=9)
    for challenge in ("c29tZXRoaW5nIGVsc2U=", "not even base64"):
        csr = build_csr(generate_key(), (("2.5.4.3", "cam-1"),), (), challenge)
        assert verdict(await est.enroll(csr, basic(token))) == (400, "not-this-connection")
    assert await est.registry.devices() == []


@pytest.mark.skipif("tls-unique" not in ssl.CHANNEL_BINDING_TYPES, reason="this Python cannot read tls-unique")
async def test_a_csr_bound_to_its_connection_is_taken(est: EstHarness) -> None:
    context = est.client_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # the ssl module knows no exporter
    reader, writer = await est.connect(context=context)
    binding = writer.get_extra_info("ssl_object").get_channel_binding("tls-unique")
    csr = build_csr(generate_key(), (("2.5.4.3", "cam-1"),), (), base64.b64encode(binding).decode())
    body = base64.b64encode(csr)
    head = "POST /.well-known/est/simpleenroll HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    head += "Content-Type: application/pkcs10\r\n"
    head += f"Authorization: {basic(await est.token(model='cam'))['Authorization']}\r\n"
    writer.write(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    answer = Answer(await reader.read())
    writer.close()
    assert answer.status == 200, answer.text


# Nobody we know


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Basic",
        "Basic !!!",
        "Basic " + base64.b64encode(b"no colon").decode(),
        "Basic " + base64.b64encode(b"\xff:\xfe").decode(),
        "Basic " + base64.b64encode(b"cam-1:unknown.secret").decode(),
        "Basic " + base64.b64encode(b"cam-1:").decode(),
        "Bearer abc",
        "Digest username=x",
    ],
)
async def test_no_or_bad_credentials_are_401_with_a_challenge(est: EstHarness, authorization: str | None) -> None:
    await est.device("cam-1")
    headers = {"Authorization": authorization} if authorization is not None else {}
    answer = await est.enroll(csr_for("cam-1"), headers)
    assert answer.status == 401
    assert answer.header("WWW-Authenticate") == 'Basic realm="estrealm"'
    assert "secret" not in answer.text


async def test_a_token_renews_nothing(est: EstHarness) -> None:
    device = await est.enrolled()
    answer = await est.post("simplereenroll", renewal_csr(device), basic(await est.token("cam-1")))
    assert verdict(answer) == (401, "no-certificate")


async def test_a_certificate_of_our_ca_without_a_record_is_401(est: EstHarness) -> None:
    # Issued from a stolen copy of the CA, or restored from before a backup.
    device = await est.enrolled()
    key = generate_key()
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    forged = forge(LocalIssuer(*est.issuing), spki)
    unknown = est.identity(forged, key)
    assert unknown.certificate.subject == device.certificate.subject
    assert verdict(await est.reenroll(renewal_csr(unknown), unknown)) == (401, "certificate-unknown")


def forge(issuer: LocalIssuer, spki: bytes) -> x509.Certificate:
    import hashlib

    from fleet.domain.credential import CredentialKind
    from fleet.domain.enrollment import IssuePermit

    now = datetime.now(UTC)
    digest = hashlib.sha256(spki).digest()
    permit = IssuePermit(CredentialKind.DEVICE, "cam-1", "", spki, digest, now, now + timedelta(days=9), "nobody")
    return x509.load_der_x509_certificate(issuer.issue(permit, now).der)


async def test_a_foreign_cas_certificate_does_not_even_connect(est: EstHarness) -> None:
    now = datetime.now(UTC)
    foreign = create_issuing("Acme", *create_root("Acme", now), now)  # of the very same name
    key = generate_key()
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    stranger = est.identity(forge(LocalIssuer(*foreign), spki), key)
    with pytest.raises((ssl.SSLError, ConnectionError, IndexError)):  # IndexError: nothing came that could be parsed
        _ = (await est.send("GET", "/.well-known/est/cacerts", identity=stranger)).status


# Known, and refused


async def test_a_certificate_renews_no_other_device(est: EstHarness) -> None:
    one, other = await est.enrolled("cam-1"), await est.enrolled("cam-2")
    assert verdict(await est.reenroll(renewal_csr(other), one)) == (403, "not-your-identity")
    assert verdict(await est.enroll(csr_for("cam-2"), identity=one)) == (403, "use-reenroll")
    answer = await est.enroll(csr_for("cam-2"), basic(await est.token("cam-2")), identity=one)
    assert verdict(answer) == (403, "not-your-identity")


async def test_names_must_be_those_of_the_current_certificate(est: EstHarness) -> None:
    device = await est.enrolled("cam-1", serial="SN1")
    assert verdict(await est.reenroll(csr_for("cam-1"), device)) == (403, "names-changed")
    subject = (("2.5.4.3", "cam-1"), ("2.5.4.5", "SN1"))
    assert verdict(await est.reenroll(build_csr(generate_key(), subject, ()), device)) == (403, "names-changed")
    assert (await est.reenroll(renewal_csr(device), device)).status == 200


@pytest.mark.parametrize("end", [revocation.suspend, revocation.revoke, revocation.retire])
async def test_who_was_put_out_gets_nothing(est: EstHarness, end: object) -> None:
    device = await est.enrolled()
    token = await est.token("cam-1")
    await end(est.registry, "cam-1", act=Act("test", est.clock()))  # type: ignore[operator]
    codes = {"certificate-revoked", "device-suspended", "device-revoked", "device-retired"}
    for answer in (
        await est.reenroll(renewal_csr(device), device),
        await est.enroll(csr_for("cam-1"), basic(token)),
        await est.enroll(csr_for("cam-1"), basic(token), identity=device),
    ):
        assert answer.status == 403
        assert answer.code in codes


async def test_a_superseded_certificate_renews_nothing(est: EstHarness) -> None:
    first = await est.enrolled()
    key = generate_key()
    second = (await est.reenroll(renewal_csr(first, key), first)).certificates[0]
    # Seen in use: from here on the first is over.
    newest = est.identity(second, key)
    assert (await est.reenroll(renewal_csr(newest), newest)).status == 200
    assert verdict(await est.reenroll(renewal_csr(first), first)) == (403, "certificate-superseded")


async def test_used_up_expired_and_revoked_tokens_are_403(est: EstHarness) -> None:
    used, revoked, expired = [await est.token(model="cam") for _ in range(3)]
    assert (await est.enroll(csr_for("new-1"), basic(used))).status == 200
    assert verdict(await est.enroll(csr_for("new-2"), basic(used))) == (403, "token-used-up")
    await inventory.revoke_token(est.registry, revoked.partition(".")[0], act=Act("test", est.clock()))
    assert verdict(await est.enroll(csr_for("new-2"), basic(revoked))) == (403, "token-revoked")
    est.now = datetime.now(UTC) + timedelta(hours=2)
    assert verdict(await est.enroll(csr_for("new-2"), basic(expired))) == (403, "token-expired")


async def test_another_devices_token_and_user_name_are_403(est: EstHarness) -> None:
    await est.device("cam-1")
    await est.device("cam-2")
    token = await est.token("cam-1")
    assert verdict(await est.enroll(csr_for("cam-2"), basic(token))) == (403, "not-your-identity")
    assert verdict(await est.enroll(csr_for("cam-1"), basic(token, "cam-2"))) == (403, "not-your-identity")
    assert (await est.enroll(csr_for("cam-1"), basic(token, "cam-1"))).status == 200


# At the same time, and after a lost answer


async def test_fifty_at_once_with_a_token_of_ten_uses_are_exactly_ten(est: EstHarness) -> None:
    headers = basic(await est.token(model="cam", uses=10))
    answers = await asyncio.gather(*(est.enroll(csr_for(f"new-{n}"), headers) for n in range(50)))
    assert sorted(a.status for a in answers) == [200] * 10 + [403] * 40
    assert {a.code for a in answers if a.status == 403} == {"token-used-up"}
    assert len(await est.registry.devices()) == 10


async def test_a_lost_answer_is_given_again(est: EstHarness) -> None:
    await est.device("cam-1")
    csr, headers = csr_for("cam-1"), basic(await est.token("cam-1"))
    first, again = await est.enroll(csr, headers), await est.enroll(csr, headers)
    assert first.body == again.body


async def test_every_certificate_that_left_is_in_the_registry(est: EstHarness) -> None:
    device = await est.enrolled()
    answer = await est.reenroll(renewal_csr(device), device)
    fingerprints = [c.fingerprint(hashes.SHA256()) for c in (device.certificate, answer.certificates[0])]
    known = {c.fingerprint: c.state for c in await est.registry.credentials("cam-1")}
    assert [known[f] for f in fingerprints] == [CredentialState.ACTIVE, CredentialState.ISSUED]


async def test_no_secret_reaches_the_log_or_the_audit(est: EstHarness, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    token = await est.token(model="cam")
    await est.enroll(csr_for("new-1"), basic(token))
    await est.enroll(csr_for("new-2"), basic(token))
    secret = token.partition(".")[2]
    assert secret not in caplog.text
    assert basic(token)["Authorization"].removeprefix("Basic ") not in caplog.text
    assert secret not in repr(await est.registry.audit())
    lines = [r.getMessage() for r in caplog.records if r.name == "fleet.servers.est"]
    assert [line.split(" ms=")[0].partition(" serial=")[0] for line in lines] == [
        "event=est.simpleenroll device=new-1",
        "event=est.simpleenroll device=new-2",
    ]
    assert "code=token-used-up status=403" in lines[1]
