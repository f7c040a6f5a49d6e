"""curl and openssl as an EST client made of stock parts, on TLS 1.2 and 1.3."""

import base64
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tests.servers.est_fixtures import EstHarness, open_est, run

pytestmark = [
    pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed"),
    pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed"),
]

TLS = {"1.2": ("--tlsv1.2", "--tls-max", "1.2"), "1.3": ("--tlsv1.3",)}


@pytest.fixture
async def est(tmp_path: Path) -> AsyncIterator[EstHarness]:
    async with open_est(tmp_path) as est:
        yield est


async def done(*command: str | Path, stdin: bytes = b"") -> bytes:
    code, output, said = await run(*command, stdin=stdin)
    assert code == 0, said
    return output


async def curl(est: EstHarness, operation: str, *words: str | Path, body: bytes = b"") -> tuple[int, bytes]:
    """Status and body."""
    out = est.folder / "answer"
    wanted = ("--silent", "--show-error", "--cacert", est.ca_file, "--output", out, "--write-out", "%{http_code}")
    url = f"{est.url}/.well-known/est/{operation}"
    status = await done("curl", *wanted, *words, url, stdin=body)
    return int(status), out.read_bytes()


async def certificates(message: bytes) -> list[x509.Certificate]:
    pem = await done("openssl", "pkcs7", "-inform", "DER", "-print_certs", stdin=base64.b64decode(message))
    return x509.load_pem_x509_certificates(pem)


NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-subj", "/CN=cam-1", "-outform", "DER")
POST = ("--header", "Content-Type: application/pkcs10", "--data-binary", "@-")


@pytest.mark.parametrize("version", TLS)
async def test_the_whole_life_of_a_certificate(est: EstHarness, tmp_path: Path, version: str) -> None:
    status, message = await curl(est, "cacerts", *TLS[version])
    assert status == 200
    assert set(await certificates(message)) == {est.root[0], est.issuing[0]}

    await est.device("cam-1")
    key, cert = tmp_path / "device.key", tmp_path / "device.pem"
    csr = await done("openssl", "req", "-new", *NEW_KEY, "-keyout", key)
    (tmp_path / "netrc").write_text(f"machine localhost login cam-1 password {await est.token('cam-1')}\n")
    proof = ("--netrc-file", tmp_path / "netrc")  # not --user: argv can be read by all
    status, message = await curl(est, "cam/simpleenroll", *TLS[version], *proof, *POST, body=base64.b64encode(csr))
    assert status == 200, message
    [first] = await certificates(message)
    cert.write_bytes(await done("openssl", "pkcs7", "-inform", "DER", "-print_certs", stdin=base64.b64decode(message)))

    csr = await done("openssl", "req", "-new", *NEW_KEY, "-keyout", tmp_path / "next.key")
    mutual = ("--cert", cert, "--key", key)
    status, message = await curl(est, "simplereenroll", *TLS[version], *mutual, *POST, body=base64.encodebytes(csr))
    assert status == 200, message
    [second] = await certificates(message)
    assert second.subject == first.subject
    (tmp_path / "issuing.pem").write_bytes(est.issuing[0].public_bytes(Encoding.PEM))
    verify = ("-x509_strict", "-purpose", "sslclient", "-CAfile", est.ca_file, "-untrusted", tmp_path / "issuing.pem")
    await done("openssl", "verify", *verify, cert)


async def test_curl_is_told_why_not(est: EstHarness) -> None:
    assert await curl(est, "simpleenroll", *POST, body=b"MAA=") == (
        401,
        b"A token, a certificate that enrolls devices, or a key on the manifest is needed. (no-credentials)\n",
    )
    status, said = await curl(est, "simpleenroll", "--user", "cam-1:no.token", *POST, body=b"not base64")
    assert (status, said) == (400, b"The body is not base64. (malformed)\n")


async def test_tls_1_1_is_not_spoken(est: EstHarness) -> None:
    code, _, _ = await run("curl", "--silent", "--cacert", est.ca_file, "--tls-max", "1.1", f"{est.url}/healthz")
    assert code != 0


async def test_s_client_speaking_http_1_0_is_answered_in_http_1_0(est: EstHarness) -> None:
    words = (
        "-connect",
        f"127.0.0.1:{est.port}",
        "-CAfile",
        est.ca_file,
        "-verify_return_error",
        "-quiet",
        "-ign_eof",
    )
    answer = await done("openssl", "s_client", *words, stdin=b"GET /.well-known/est/cacerts HTTP/1.0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.0 200 OK\r\n")
    assert b"\r\nContent-Type: application/pkcs7-mime; smime-type=certs-only\r\n" in answer
