"""First enrollments, each on a fresh TLS connection: what a fleet's first morning looks like.

Keys and requests are made before the turn, so that the load's core spends its time on connections. Each request has a
separate key and device id, and each answer is kept: after the turn it is decoded and its certificate compared with
the key that was sent.
"""

import io
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPResponse
from typing import Any, cast

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from OpenSSL import SSL

from fleet.domain.issuance_context import COMMON_NAME
from fleet.wire.csr import build_csr
from hw_bench.drivers.command_loop import Command, Handler, serve
from hw_bench.drivers.enrollment_protocols import EnrollmentProtocol, protocol_of
from hw_bench.drivers.handshake import client_context, connect

READ_SIZE = 16384  # a whole answer: a certificate with its chain is 1 to 4 KB
SUCCESS = (b"HTTP/1.1 200 ", b"HTTP/1.1 201 ")


@dataclass(frozen=True, slots=True)
class Request:
    """One enrollment, ready to be sent."""

    device: str
    spki: bytes
    http: bytes


class Enroller:
    """The requests of one driver process, the threads that send them, and what came back."""

    def __init__(self, context: SSL.Context, prefix: str, protocol: EnrollmentProtocol) -> None:
        self._context = context
        self._prefix = prefix
        self._protocol = protocol
        self._made = 0
        self._waiting: deque[Request] = deque()
        self._answered: list[tuple[Request, bytes]] = []
        self._problems: list[str] = []

    def top_up(self, count: int) -> None:
        """Have `count` requests ready."""
        while len(self._waiting) < count:
            self._made += 1
            self._waiting.append(self._request(f"{self._prefix}-{self._made:06d}"))

    def _request(self, device: str) -> Request:
        key = ec.generate_private_key(ec.SECP256R1())
        spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        csr = build_csr(key, ((COMMON_NAME, device),), ())
        return Request(device, spki, self._protocol.request(device, csr))

    def run(self, address: tuple[str, int], seconds: float, at_once: int) -> dict[str, Any]:
        """Enroll by `at_once` threads until `seconds` are over or no request is left."""
        answered, problems = len(self._answered), len(self._problems)
        end = time.monotonic() + seconds
        threads = [threading.Thread(target=self._work, args=(address, end)) for _ in range(at_once)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return {
            "operations": len(self._answered) - answered,
            "failed": len(self._problems) - problems,
            "problems": self._problems[problems : problems + 3],
        }

    def _work(self, address: tuple[str, int], end: float) -> None:
        while time.monotonic() < end:
            try:
                request = self._waiting.popleft()
            except IndexError:
                return
            try:
                answer = self._send(request, address)
            except (SSL.Error, OSError) as error:
                self._problems.append(f"{type(error).__name__}: {error}")
                continue
            if answer.startswith(SUCCESS):
                self._answered.append((request, answer))
            else:
                self._problems.append(answer[:300].decode(errors="replace"))

    def _send(self, request: Request, address: tuple[str, int]) -> bytes:
        connection = connect(address)
        try:
            tls = SSL.Connection(self._context, connection)
            tls.set_connect_state()
            tls.sendall(request.http)
            parts = []
            try:
                while part := tls.recv(READ_SIZE):
                    parts.append(part)
            except SSL.ZeroReturnError:
                pass  # Connection: close
            return b"".join(parts)
        finally:
            connection.close()

    def collect(self) -> dict[str, Any]:
        """SHA-256 of every certificate received since the last call, hexadecimal.

        Raises: ValueError when one is not for the key that was sent with it.
        """
        fingerprints = []
        for request, answer in self._answered:
            certificate = self._protocol.certificate(body_of(answer))
            spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            if spki != request.spki:
                raise ValueError(f"{request.device} got a certificate for another key")
            fingerprints.append(certificate.fingerprint(hashes.SHA256()).hex())
        self._answered.clear()
        return {"fingerprints": fingerprints}


class _Received:
    """A complete answer, in the form of the socket that `http.client` reads."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self._answer)


def body_of(answer: bytes) -> bytes:
    """The body of a whole HTTP answer, its chunks joined. Raises: http.client.HTTPException."""
    response = HTTPResponse(cast("socket.socket", _Received(answer)))
    response.begin()
    return response.read()


def prepare(config: Command) -> Mapping[str, Handler]:
    context = client_context(config["certificate"], config["key"], config["tls"])
    prefix = f"{config['prefix']}-{config['member']}"
    enroller = Enroller(context, prefix, protocol_of(config))

    def top_up(command: Command) -> dict[str, Any]:
        enroller.top_up(command["count"])
        return {}

    def run(command: Command) -> dict[str, Any]:
        return enroller.run((command["host"], command["port"]), command["seconds"], command["at_once"])

    return {"top-up": top_up, "run": run, "collect": lambda command: enroller.collect()}


if __name__ == "__main__":
    serve(prepare)
