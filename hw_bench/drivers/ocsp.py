"""OCSP requests one after another: POST on a fresh connection each, as relying parties ask. Each answer must be a
success about the certificate that was asked for.
"""

import os
import time
from collections.abc import Mapping
from itertools import cycle
from typing import Any

from fleet.wire.der import OCTET_STRING, encode_element, encode_oid, sequence
from fleet.wire.ocsp import REQUEST_TYPE, cert_id
from hw_bench.drivers.command_loop import Command, Handler, serve
from hw_bench.drivers.handshake import connect

NONCE_SIZE = 32  # RFC 9654, 2.1
ANSWER_SIZE_MAX = 16 * 1024
_NONCE = encode_oid("1.3.6.1.5.5.7.48.1.2")
_SUCCESSFUL = b"\x0a\x01\x00"


def question(certificate: bytes, nonce: bytes) -> bytes:
    """A request for the certificate with this id, DER; without a nonce where that is empty."""
    extension = sequence(_NONCE, encode_element(OCTET_STRING, encode_element(OCTET_STRING, nonce)))
    extensions = encode_element(0xA2, sequence(extension)) if nonce else b""
    return sequence(sequence(sequence(sequence(certificate)), extensions))


def ask(address: tuple[str, int], path: str, body: bytes) -> bytes:
    """The body of the answer. Raises: OSError, ValueError: none came, or not a success."""
    with connect(address) as connection:
        connection.sendall(
            f"POST {path} HTTP/1.0\r\nHost: {address[0]}\r\nContent-Type: {REQUEST_TYPE}\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
            + body
        )
        answer = b"".join(iter(lambda: connection.recv(ANSWER_SIZE_MAX), b""))
    head, _, der = answer.partition(b"\r\n\r\n")
    if b" 200 " not in head[:13] or _SUCCESSFUL not in der[:8]:
        raise ValueError(f"an answer was {answer[:80]!r}")
    return der


def prepare(config: Command) -> Mapping[str, Handler]:
    algorithm, name, key = config["issuer"]
    issuer = algorithm, bytes.fromhex(name), bytes.fromhex(key)
    ids = [cert_id(issuer, int(serial, 16)) for serial in config["serials"]]
    following = cycle(ids)

    def run(command: Command) -> dict[str, Any]:
        address = command["host"], command["port"]
        failed, times = 0, []
        end = time.perf_counter() + command["seconds"]
        while (began := time.perf_counter()) < end:
            asked = next(following)
            body = question(asked.encoded, os.urandom(NONCE_SIZE) if config["nonce"] else b"")
            try:
                if asked.serial.to_bytes(20) in ask(address, config["path"], body):
                    times.append(time.perf_counter() - began)
                else:
                    failed += 1
            except (OSError, ValueError):
                failed += 1
        return {"operations": len(times), "failed": failed, "times": times}

    return {"run": run}


if __name__ == "__main__":
    serve(prepare)
