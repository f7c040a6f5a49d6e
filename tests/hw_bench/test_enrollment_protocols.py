"""What the enrollment driver sends and reads, without a server."""

import base64
import json

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from fleet.ca.keys import generate_key
from fleet.wire.csr import build_csr
from fleet.wire.est import decode_body
from hw_bench.drivers.enroll import body_of
from hw_bench.drivers.enrollment_protocols import Est, StepCa
from hw_bench.peers.step_ca import key_id

KEY = generate_key()
CSR = build_csr(KEY, (("2.5.4.3", "dev-1"),), ())


def parts(request: bytes) -> tuple[str, dict[str, str], bytes]:
    head, _, body = request.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    assert headers["Content-Length"] == str(len(body))
    assert headers["Connection"] == "close"
    return first, headers, body


def test_est_by_token_and_by_certificate() -> None:
    first, headers, body = parts(Est("cam", "t1.secret").request("dev-1", CSR))
    assert first == "POST /.well-known/est/cam/simpleenroll HTTP/1.1"
    assert base64.b64decode(headers["Authorization"].removeprefix("Basic ")) == b"dev-1:t1.secret"
    assert decode_body(body) == CSR
    assert "Authorization" not in parts(Est("cam", "").request("dev-1", CSR))[1]


def test_a_step_ca_token_is_signed_by_its_provisioner_for_one_device() -> None:
    provisioner = generate_key()
    protocol = StepCa("bench", provisioner, key_id(provisioner), "https://localhost/1.0/sign")
    first, _, body = parts(protocol.request("dev-1", CSR))
    assert first == "POST /1.0/sign HTTP/1.1"
    asked = json.loads(body)
    assert x509.load_pem_x509_csr(asked["csr"].encode()) == x509.load_der_x509_csr(CSR)
    header, claims, signature = (base64.urlsafe_b64decode(part + "===") for part in asked["ott"].split("."))
    assert json.loads(header) == {"alg": "ES256", "typ": "JWT", "kid": key_id(provisioner)}
    read = json.loads(claims)
    assert (read["iss"], read["sub"], read["aud"]) == ("bench", "dev-1", "https://localhost/1.0/sign")
    assert read["nbf"] <= read["iat"] < read["exp"]
    r, s = (int.from_bytes(half, "big") for half in (signature[:32], signature[32:]))
    signed = asked["ott"].rpartition(".")[0].encode()
    provisioner.public_key().verify(encode_dss_signature(r, s), signed, ec.ECDSA(hashes.SHA256()))
    again = json.loads(parts(protocol.request("dev-1", CSR))[2])["ott"].split(".")[1]
    assert json.loads(base64.urlsafe_b64decode(again + "==="))["jti"] != read["jti"]


def test_a_body_comes_whole_or_in_chunks() -> None:
    assert body_of(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabcd") == b"abcd"
    chunked = b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n"
    assert body_of(chunked) == b"abcd"
