"""Every kind of key that a model may allow, from CSR to mutual TLS, over the real EST server.

The client is OpenSSL as `cryptography` brings it, which knows ML-DSA; the system's own learned that in 3.5. On TLS 1.2
no certificate of ML-DSA can be shown: its signatures are TLS 1.3's alone.
"""

import asyncio
import base64
import shutil
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from OpenSSL import SSL

from fleet.domain.access import Act
from fleet.domain.device import KEY_TYPES, Model
from fleet.services import inventory
from fleet.wire.csr import build_csr
from tests.ca.certificate_kinds import KEYS
from tests.servers.est_fixtures import DEADLINE_SECONDS, Answer, EstHarness, basic, open_est, run

CN = "2.5.4.3"
ML_DSA = ("ML-DSA-44", "ML-DSA-65")


@pytest.fixture
async def est(tmp_path: Path) -> AsyncIterator[EstHarness]:
    async with open_est(tmp_path) as est:
        await inventory.add_model(est.registry, Model("any", key_types=KEY_TYPES), act=Act("test", est.clock()))
        yield est


def files(est: EstHarness, key: CertificateIssuerPrivateKeyTypes, *certificates: x509.Certificate) -> tuple[Path, Path]:
    cert_file, key_file = est.folder / "client.pem", est.folder / "client.key"
    cert_file.write_bytes(b"".join(each.public_bytes(Encoding.PEM) for each in certificates))
    key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return cert_file, key_file


def post(port: int, ca_file: Path, pair: tuple[Path, Path], path: str, csr: bytes, version: int) -> Answer:
    """One request over a connection of OpenSSL's own making."""
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_min_proto_version(version)
    context.set_max_proto_version(version)
    context.load_verify_locations(str(ca_file))
    context.set_verify(SSL.VERIFY_PEER)
    context.use_certificate_chain_file(str(pair[0]))
    context.use_privatekey_file(str(pair[1]))
    body = base64.b64encode(csr)
    head = f"POST /.well-known/est/{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    head += f"Content-Type: application/pkcs10\r\nContent-Length: {len(body)}\r\n\r\n"
    received = b""
    with socket.create_connection(("127.0.0.1", port), DEADLINE_SECONDS) as plain:
        plain.settimeout(None)
        connection = SSL.Connection(context, plain)
        connection.set_connect_state()
        connection.do_handshake()
        connection.sendall(head.encode() + body)
        while True:
            try:
                received += connection.recv(65536)
            except (SSL.ZeroReturnError, SSL.SysCallError):
                return Answer(received)


async def enrolled(est: EstHarness, key: CertificateIssuerPrivateKeyTypes) -> x509.Certificate:
    await est.device("cam-1", "any")
    answer = await est.enroll(build_csr(key, ((CN, "cam-1"),), ()), basic(await est.token("cam-1")))
    assert answer.status == 200, answer.text
    [certificate] = answer.certificates
    assert certificate.public_key() == key.public_key()
    return certificate


@pytest.mark.parametrize("version", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION], ids=["1.2", "1.3"])
@pytest.mark.parametrize("kind", KEY_TYPES)
async def test_it_enrolls_and_renews_by_its_certificate(est: EstHarness, kind: str, version: int) -> None:
    key = KEYS[kind]
    pair = files(est, key, await enrolled(est, key))
    csr = build_csr(key, ((CN, "cam-1"),), ())
    work = asyncio.to_thread(post, est.port, est.ca_file, pair, "simplereenroll", csr, version)
    if kind in ML_DSA and version == SSL.TLS1_2_VERSION:
        # The client has no signature that TLS 1.2 knows, and so shows no certificate.
        answer = await work
        assert (answer.status, answer.code) == (401, "no-certificate")
        return
    answer = await work
    assert answer.status == 200, answer.text
    assert answer.certificates[0].public_key() == key.public_key()


@pytest.mark.parametrize("kind", KEY_TYPES)
async def test_the_standard_library_renews_by_it(est: EstHarness, kind: str) -> None:
    key = KEYS[kind]
    cert_file, key_file = files(est, key, await enrolled(est, key))
    if kind in ML_DSA and ssl.OPENSSL_VERSION_INFO < (3, 5):
        with pytest.raises(ssl.SSLError):
            ssl.create_default_context().load_cert_chain(cert_file, key_file)
        pytest.skip(f"{ssl.OPENSSL_VERSION} knows no ML-DSA")
    context = est.client_context()
    context.load_cert_chain(cert_file, key_file)
    body = base64.b64encode(build_csr(key, ((CN, "cam-1"),), ()))
    typed = {"Content-Type": "application/pkcs10"}
    answer = await est.send("POST", "/.well-known/est/simplereenroll", body, typed, context=context)
    assert answer.status == 200, answer.text


@pytest.mark.parametrize("kind", KEY_TYPES)
async def test_what_the_model_does_not_list_is_refused(est: EstHarness, kind: str) -> None:
    others = tuple(name for name in KEY_TYPES if name != kind)
    await inventory.add_model(est.registry, Model("others", key_types=others), act=Act("test", est.clock()))
    await est.device("cam-1", "others")
    answer = await est.enroll(build_csr(KEYS[kind], ((CN, "cam-1"),), ()), basic(await est.token("cam-1")))
    assert (answer.status, answer.code) == (400, "key-not-allowed")


NEW_KEY = {
    "EC-P384": ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384"),
    "RSA-2048+": ("-newkey", "rsa:3072"),
    "RSA-PSS": ("-newkey", "rsa:2048", "-sigopt", "rsa_padding_mode:pss"),
    "Ed25519": ("-newkey", "ed25519"),
    "ML-DSA-44": ("-newkey", "ML-DSA-44"),
    "ML-DSA-65": ("-newkey", "ML-DSA-65"),
}


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("kind", NEW_KEY)
async def test_openssl_makes_it_and_curl_renews_by_it(est: EstHarness, kind: str) -> None:
    key, request, cert = est.folder / "o.key", est.folder / "o.csr", est.folder / "o.pem"
    words = ("openssl", "req", "-new", *NEW_KEY[kind], "-noenc", "-subj", "/CN=cam-1", "-outform", "DER")
    code, _, said = await run(*words, "-keyout", key, "-out", request)
    if code and kind in ML_DSA:
        pytest.skip("this openssl knows no ML-DSA")
    assert code == 0, said
    await est.device("cam-1", "any")
    answer = await est.enroll(request.read_bytes(), basic(await est.token("cam-1")))
    assert answer.status == 200, answer.text
    cert.write_bytes(answer.certificates[0].public_bytes(Encoding.PEM))
    (est.folder / "issuing.pem").write_bytes(est.issuing[0].public_bytes(Encoding.PEM))
    verify = ("-x509_strict", "-purpose", "sslclient", "-CAfile", est.ca_file)
    code, _, said = await run("openssl", "verify", *verify, "-untrusted", est.folder / "issuing.pem", cert)
    assert code == 0, said
    mutual = ("--silent", "--show-error", "--fail", "--cacert", est.ca_file, "--cert", cert, "--key", key)
    body = ("--header", "Content-Type: application/pkcs10", "--data-binary", "@-")
    url = f"{est.url}/.well-known/est/simplereenroll"
    code, message, said = await run("curl", *mutual, *body, url, stdin=base64.b64encode(request.read_bytes()))
    assert code == 0, said
    assert base64.b64decode(message)
