"""step-ca as a peer: it enrolls whom its provisioner's token names, once, and nobody else."""

import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from OpenSSL import SSL

from fleet.ca.keys import generate_key
from fleet.wire.csr import build_csr
from hw_bench.drivers.enroll import body_of
from hw_bench.drivers.enrollment_protocols import StepCa, protocol_of
from hw_bench.drivers.handshake import client_context, connect
from hw_bench.peers import step_ca
from hw_bench.peers.contract import Running
from hw_bench.scenarios.contract import new_environment
from tests.hw_bench.needs import NEEDS_STEP_CA

pytestmark = NEEDS_STEP_CA
COMMON_NAME = "2.5.4.3"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with new_environment() as environment, step_ca.start(environment) as started:
        yield started


@pytest.fixture
def protocol(server: Running) -> StepCa:
    made = protocol_of(server.login)
    assert isinstance(made, StepCa)
    return made


def send(server: Running, request: bytes) -> bytes:
    connection = connect(server.address)
    try:
        return exchange(connection, request)
    finally:
        connection.close()


def exchange(connection: socket.socket, request: bytes) -> bytes:
    tls = SSL.Connection(client_context("", "", "TLSv1.3"), connection)
    tls.set_connect_state()
    tls.sendall(request)
    parts = []
    try:
        while part := tls.recv(16384):
            parts.append(part)
    except SSL.ZeroReturnError:
        pass
    return b"".join(parts)


def test_a_device_is_given_a_certificate_for_its_key(server: Running, protocol: StepCa) -> None:
    key = generate_key()
    answer = send(server, protocol.request("dev-1", build_csr(key, ((COMMON_NAME, "dev-1"),), ())))
    assert answer.startswith(b"HTTP/1.1 201 ")
    certificate = protocol.certificate(body_of(answer))
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert certificate.public_key().public_bytes(*form) == key.public_key().public_bytes(*form)
    assert certificate.subject.rfc4514_string() == "CN=dev-1"


def test_a_token_is_used_once(server: Running, protocol: StepCa) -> None:
    request = protocol.request("dev-2", build_csr(generate_key(), ((COMMON_NAME, "dev-2"),), ()))
    first, second = (send(server, request).split(b" ")[1] for _ in range(2))
    assert (first, second) == (b"201", b"401")


def test_a_token_of_another_key_or_for_another_device_is_refused(server: Running, protocol: StepCa) -> None:
    csr = build_csr(generate_key(), ((COMMON_NAME, "dev-3"),), ())
    forged = replace(protocol, key=generate_key())
    assert send(server, forged.request("dev-3", csr)).startswith(b"HTTP/1.1 401 ")
    assert send(server, protocol.request("dev-4", csr)).startswith(b"HTTP/1.1 403 ")
