"""The handshake driver against real servers."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from OpenSSL import SSL

from hw_bench.certificates import Identity
from hw_bench.drivers.handshake import client_context, handshake, refuses, run
from hw_bench.drivers.pool import DriverPool, total
from hw_bench.peers.contract import Environment, Running
from hw_bench.processes import BenchError, free_port
from hw_bench.scenarios.contract import new_environment
from hw_bench.scenarios.handshakes import LISTENERS, check_client_verification

pytestmark = pytest.mark.usefixtures("forked_programs")
TLS_VERSIONS = ("TLSv1.2", "TLSv1.3")


@pytest.fixture(scope="module")
def environment() -> Iterator[Environment]:
    with new_environment() as made:
        yield made


@pytest.fixture(scope="module", params=list(LISTENERS))
def server(request: pytest.FixtureRequest, environment: Environment) -> Iterator[Running]:
    peer = LISTENERS[request.param]
    reason = peer.missing()
    if reason is not None:
        pytest.skip(reason)
    with peer.start(environment) as started:
        yield started


def context_of(identity: Identity, tls: str = "TLSv1.3") -> SSL.Context:
    return client_context(str(identity.certificate), str(identity.key), tls)


@pytest.mark.parametrize("tls", TLS_VERSIONS)
def test_a_device_completes_handshakes(server: Running, environment: Environment, tls: str) -> None:
    outcome = run(context_of(environment.certificates.devices[0], tls), server.address, seconds=0.1)
    assert outcome["operations"] >= 1
    assert outcome["failed"] == 0


@pytest.mark.parametrize("tls", TLS_VERSIONS)
def test_a_stranger_is_refused_and_so_is_nobody(server: Running, environment: Environment, tls: str) -> None:
    assert refuses(context_of(environment.certificates.stranger, tls), server.address)
    assert refuses(client_context("", "", tls), server.address)
    assert not refuses(context_of(environment.certificates.devices[0], tls), server.address)


def test_manners_are_checked_before_anything_is_measured(server: Running, environment: Environment) -> None:
    check_client_verification(server, environment, "TLSv1.3")


@pytest.mark.parametrize(
    ("verifies", "says"),
    [(ssl.CERT_NONE, "accepted an untrusted certificate"), (ssl.CERT_REQUIRED, "refused the device's certificate")],
)
def test_a_server_with_other_manners_is_not_measured(
    environment: Environment, verifies: ssl.VerifyMode, says: str
) -> None:
    with tls_server(environment.certificates.server, verifies) as server, pytest.raises(BenchError, match=says):
        check_client_verification(server, environment, "TLSv1.3")


@contextlib.contextmanager
def tls_server(identity: Identity, verifies: ssl.VerifyMode) -> Iterator[Running]:
    """It asks every client, or none, for a certificate, and trusts no CA."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(identity.certificate, identity.key)
    context.verify_mode = verifies
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):  # the end of the listener
                while True:
                    accepted, _ = listener.accept()
                    with accepted, contextlib.suppress(OSError), context.wrap_socket(accepted, True) as tls:
                        tls.recv(100)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield Running("a server", "", listener.getsockname(), ())
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_a_crew_counts_together(server: Running, environment: Environment, tmp_path: Path) -> None:
    device = environment.certificates.devices[0]
    config = {"certificate": str(device.certificate), "key": str(device.key), "tls": "TLSv1.3"}
    host, port = server.address
    with DriverPool("hw_bench.drivers.handshake", 2, config, cores=environment.load_cores, folder=tmp_path) as pool:
        answers = pool.send({"do": "run", "host": host, "port": port, "seconds": 0.1}, 0.1)
        assert len(answers) == 2
        assert total(answers, "operations") >= 2
        assert total(answers, "failed") == 0
        assert pool.cpu_seconds() > 0


def test_a_refused_handshake_is_counted_as_failed(environment: Environment) -> None:
    with LISTENERS["fleet-tls"].start(_elsewhere(environment)) as server:
        stranger = context_of(environment.certificates.stranger)
        assert not handshake(stranger, server.address)
        outcome = run(stranger, server.address, seconds=0.05)
    assert outcome["operations"] == 0
    assert outcome["failed"] >= 1


def test_what_a_crew_member_suffers_reaches_the_run(environment: Environment, tmp_path: Path) -> None:
    device = environment.certificates.devices[0]
    config = {"certificate": str(device.certificate), "key": str(device.key), "tls": "TLSv1.3"}
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(
            DriverPool("hw_bench.drivers.handshake", 1, config, cores=environment.load_cores, folder=tmp_path)
        )
        with pytest.raises(BenchError, match="ConnectionRefusedError"):
            pool.send({"do": "run", "host": "127.0.0.1", "port": free_port(), "seconds": 0.1}, 0.1)
        with pytest.raises(BenchError, match="KeyError: 'dance'"):
            pool.send({"do": "dance"})


def test_a_crew_that_cannot_prepare_is_quoted(environment: Environment, tmp_path: Path) -> None:
    config = {"certificate": str(tmp_path / "none.pem"), "key": "", "tls": "TLSv1.3"}
    with (
        pytest.raises(BenchError, match=r"hw_bench.drivers.handshake ended: (.|\n)*OpenSSL"),
        DriverPool("hw_bench.drivers.handshake", 2, config, cores=environment.load_cores, folder=tmp_path),
    ):
        pass


def _elsewhere(environment: Environment) -> Environment:
    folder = environment.folder / "elsewhere"
    folder.mkdir()
    return Environment(folder, environment.certificates, environment.cores)
