"""step-ca as an enrollment server: one JWK provisioner, its badger database, P-256 throughout, no access log.

Its defaults stay: badger syncs each write to disk before the answer, and each token is used once.
"""

import contextlib
import hashlib
import json
import re
import subprocess
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from fleet.ca.authority import create_issuing, create_root
from fleet.ca.keys import generate_key, write_key
from hw_bench.peers.contract import Environment, Peer, Running
from hw_bench.processes import accepts, free_port, program, running, wait_until

NAME = "step-ca"
PROVISIONER = "bench"


def missing() -> str | None:
    return None if program(NAME) else "step-ca is not installed"


def version() -> str:
    """For instance "step-ca 0.30.2"."""
    argv = [program(NAME) or NAME, "version"]
    text = subprocess.run(argv, capture_output=True, text=True, check=False).stdout
    found = re.search(r"Smallstep CA/(\S+)", text)
    return f"{NAME} {found[1]}" if found else NAME


@contextlib.contextmanager
def start(environment: Environment) -> Iterator[Running]:
    """step-ca on a free port of 127.0.0.1, with a CA of its own. Raises: BenchError."""
    room = environment.new_folder(NAME)
    port = free_port()
    key = generate_key()
    _make_ca(room)
    write_key(room / "provisioner.key", key)
    (room / "ca.json").write_text(json.dumps(_config(room, port, key)))
    log = room / "output.log"
    with running([program(NAME) or NAME, str(room / "ca.json")], cores=environment.server_cores, log=log) as process:
        wait_until(lambda: accepts(("127.0.0.1", port)), NAME, process, log)
        login = {
            "protocol": NAME,
            "provisioner": PROVISIONER,
            "provisioner_key": str(room / "provisioner.key"),
            "key_id": key_id(key),
            "audience": f"https://localhost:{port}/1.0/sign",
            "certificate": "",
            "key": "",
        }
        yield Running(NAME, version(), ("127.0.0.1", port), (process.pid,), login=login)


def key_id(key: ec.EllipticCurvePrivateKey) -> str:
    """The JWK thumbprint of `key` (RFC 7638), by which step-ca finds the provisioner of a token."""
    jwk = _public_jwk(key)
    required = {name: jwk[name] for name in ("crv", "kty", "x", "y")}
    return _base64url(hashlib.sha256(json.dumps(required, separators=(",", ":"), sort_keys=True).encode()).digest())


def _make_ca(room: Path) -> None:
    """Root and issuing CA of the same kind as a fleet's own."""
    now = datetime.now(UTC)
    root, root_key = create_root("step-ca", now)
    issuing, issuing_key = create_issuing("step-ca", root, root_key, now)
    (room / "root.pem").write_bytes(root.public_bytes(Encoding.PEM))
    (room / "issuing.pem").write_bytes(issuing.public_bytes(Encoding.PEM))
    write_key(room / "issuing.key", issuing_key)


def _config(room: Path, port: int, key: ec.EllipticCurvePrivateKey) -> dict[str, object]:
    jwk = {"use": "sig", "alg": "ES256", "kid": key_id(key), **_public_jwk(key)}
    return {
        "root": str(room / "root.pem"),
        "crt": str(room / "issuing.pem"),
        "key": str(room / "issuing.key"),
        "address": f"127.0.0.1:{port}",
        "dnsNames": ["localhost", "127.0.0.1"],
        "db": {"type": "badgerv2", "dataSource": str(room / "db")},
        "authority": {"provisioners": [{"type": "JWK", "name": PROVISIONER, "key": jwk}]},
        "tls": {"minVersion": 1.2, "maxVersion": 1.3},
    }


def _public_jwk(key: ec.EllipticCurvePrivateKey) -> dict[str, str]:
    point = key.public_key().public_numbers()
    x, y = (_base64url(number.to_bytes(32, "big")) for number in (point.x, point.y))
    return {"kty": "EC", "crv": "P-256", "x": x, "y": y}


def _base64url(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


PEER = Peer(NAME, "step-ca with a JWK provisioner and its badger database", missing, start)
