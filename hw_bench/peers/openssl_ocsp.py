"""`openssl ocsp` as a responder: one process, its index of certificates in memory."""

import contextlib
import subprocess
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

from cryptography.hazmat.primitives.serialization import Encoding

from fleet.ca.authority import issue_responder_certificate
from fleet.ca.keys import generate_key, load_key, write_key
from fleet.home.layout import certificate_in
from hw_bench.peers.contract import Environment, Running
from hw_bench.peers.home import FleetHome
from hw_bench.processes import free_port, program, running, wait_until

NAME = "openssl ocsp"
READ_SECONDS_MAX = 300.0  # an index of a million certificates
READY = "waiting for OCSP client connections"


def missing() -> str | None:
    return None if program("openssl") else "openssl is not installed"


def version() -> str:
    """For instance "OpenSSL 3.0.19"."""
    done = subprocess.run(["openssl", "version"], capture_output=True, text=True, check=False)
    return " ".join(done.stdout.split()[:2])


@contextlib.contextmanager
def start(environment: Environment, home: FleetHome, serials: Iterable[str]) -> Iterator[Running]:
    """A responder for the issuing CA of `home` that knows these certificates as good. Raises: BenchError."""
    folder = environment.new_folder("openssl-ocsp")
    key = generate_key()
    issuing = certificate_in(home.files.issuing_certificate)
    made = issue_responder_certificate(issuing, load_key(home.files.issuing_key), key.public_key(), datetime.now(UTC))
    (folder / "responder.pem").write_bytes(made.public_bytes(Encoding.PEM))
    write_key(folder / "responder.key", key)
    with (folder / "index.txt").open("w") as index:
        index.writelines(f"V\t491231235959Z\t\t{serial.upper()}\tunknown\t/CN={serial}\n" for serial in serials)
    port, log = free_port(), folder / "output.log"
    words = ("-index", "index.txt", "-CA", str(home.files.issuing_certificate), "-port", str(port))
    signer = ("-rsigner", "responder.pem", "-rkey", "responder.key", "-nmin", "60")
    argv = ["openssl", "ocsp", *words, *signer]
    with running(argv, cores=environment.server_cores, log=log, cwd=folder) as process:
        # It accepts before it has read its index.
        wait_until(lambda: READY in log.read_text(), NAME, process, log, READ_SECONDS_MAX)
        yield Running(NAME, version(), ("127.0.0.1", port), (process.pid,))
