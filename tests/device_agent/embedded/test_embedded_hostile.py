"""The C device at an EST server that issues what it must not take, and lists CAs that are not its own."""

import base64
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.device_agent.fleet_parts import Authority
from tests.device_agent.store.test_hostile_est import Wild, certs
from tests.device_agent.wild_servers import read_request, tls_server
from tests.waiting import PATIENCE_SECONDS

NOW, DAY = datetime.now(UTC), timedelta(days=1)
NAME = "mcu:0"  # RFC 7617 has no user id with a colon; a device id may have one


@pytest.fixture(scope="module")
def served(authority: Authority) -> Iterator[Wild]:
    wild = Wild(authority)
    with tls_server(authority, wild.serve) as port:
        wild.port = port
        yield wild


@pytest.fixture
def wild(served: Wild, foreign: Authority) -> Wild:
    """Its cacerts lists another CA too."""
    served.reset()
    served.issue = lambda key: [served.issued(key, NAME)]
    served.cacerts = certs(foreign.issuing, foreign.root, served.authority.root, served.authority.issuing)
    return served


@pytest.fixture(scope="module")
def foreign(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Another CA, with the names of ours. Its issuing CA comes before ours in the SET of a PKCS#7, which DER sorts."""
    folder = tmp_path_factory.mktemp("foreign")
    while True:
        foreign = Authority(folder / "ca")
        if foreign.issuing.public_bytes(Encoding.DER) < authority.issuing.public_bytes(Encoding.DER):
            assert foreign.issuing.subject == authority.issuing.subject
            return foreign


@pytest.fixture
def run(program: Path, wild: Wild, tmp_path: Path) -> Callable[[str], str]:
    """What the device says of a command."""
    words: list[str | Path] = [program, tmp_path / "flash", NAME, str(wild.port), "1", wild.authority.ca_file]

    def call(command: str) -> str:
        done = subprocess.run(
            [*words, command], input="token\n", capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
        )
        assert done.stderr == ""
        said: str = done.stdout.partition(": ")[2].partition(",")[0].strip()
        return said

    return call


def other_key() -> Any:
    return ec.generate_private_key(ec.SECP256R1()).public_key()


Issuing = Callable[[Wild, Authority, Any], x509.Certificate]
WRONG: dict[str, Issuing] = {
    "another key": lambda wild, _, key: wild.issued(other_key(), NAME),
    "another device": lambda wild, _, key: wild.issued(key, "mcu:1"),
    "a foreign CA": lambda wild, foreign, key: wild.issued(key, NAME, by=foreign),
    "expired": lambda wild, _, key: wild.issued(key, NAME, begin=NOW - 2 * DAY, end=NOW - DAY),
    "not yet valid": lambda wild, _, key: wild.issued(key, NAME, begin=NOW + DAY, end=NOW + 2 * DAY),
    "a CA": lambda wild, _, key: wild.issued(key, NAME, ca=True),
    "a server": lambda wild, _, key: wild.issued(key, NAME, usage=ExtendedKeyUsageOID.SERVER_AUTH),
}


def test_a_wrong_certificate_is_not_taken_and_the_right_one_then_is(
    wild: Wild, foreign: Authority, run: Callable[[str], str]
) -> None:
    right = wild.issue
    for command, kinds in (("enroll", list(WRONG)), ("renew", ["another key"])):  # the same code judges both
        for kind in kinds:
            wrong = WRONG[kind]
            wild.issue = lambda key, wrong=wrong: [wrong(wild, foreign, key)]  # type: ignore[misc]
            assert run(command) == "untrusted", kind
        wild.issue = lambda key: [wild.issued(key, NAME), wild.authority.issuing]
        assert run(command) == "bad-input"  # RFC 7030, 4.2.3: the issued certificate alone
        wild.issue = right
        assert run(command) == "ok"


def test_of_cacerts_only_what_stands_above_the_certificate_is_kept(
    wild: Wild, foreign: Authority, run: Callable[[str], str], tmp_path: Path
) -> None:
    assert run("enroll") == "ok"
    flash = (tmp_path / "flash").read_bytes()
    assert wild.authority.issuing.public_bytes(Encoding.DER) in flash
    assert foreign.issuing.public_bytes(Encoding.DER) not in flash
    assert wild.authority.root.public_bytes(Encoding.DER) not in flash


def test_a_device_id_with_a_colon_leaves_the_user_id_empty(
    program: Path, wild: Wild, authority: Authority, tmp_path: Path
) -> None:
    heard: list[bytes] = []

    def serve(stream: Any) -> None:
        request = read_request(stream)
        heard.append(request)
        stream.sendall(wild.cacerts if b"cacerts" in request else b"HTTP/1.1 401 x\r\nContent-Length: 0\r\n\r\n")

    with tls_server(authority, serve) as port:
        words: list[str | Path] = [program, tmp_path / "flash", NAME, str(port), "1", authority.ca_file, "enroll"]
        done = subprocess.run(words, input="token\n", capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.startswith("enroll: refused")
    assert b"Authorization" not in heard[0]  # cacerts needs no token
    assert b"\r\nAuthorization: Basic " + base64.b64encode(b":token") + b"\r\n" in heard[1]
