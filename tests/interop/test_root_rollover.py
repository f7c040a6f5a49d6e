"""Clients of four TLS libraries that trust one root alone, over rollovers of the root, on all three listeners."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fleet.ca import authority
from fleet.home.authorities import authority_of, new_issuing_key
from fleet.home.ca_store import cross_file
from fleet.home.layout import Home
from tests.serving import Served, run_fleet
from tests.tenant_fixtures import pem

HERE = Path(__file__).parent
Verify = Callable[[int, Path], str]
"""With a port and a file with the one root to trust: "" if the server is verified, or what the client says."""


def _asked(*words: str | Path, wanted: str = "") -> str:
    done = subprocess.run(words, capture_output=True, stdin=subprocess.DEVNULL, timeout=60, check=False)
    said = (done.stdout + done.stderr).decode(errors="replace")
    return "" if (wanted in said if wanted else done.returncode == 0) else f"{words[0]}: {said}"


def _needed(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")


@pytest.fixture(scope="module")
def openssl() -> Verify:
    _needed("openssl")
    return lambda port, root: _asked(
        *("openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-CAfile", root, "-verify_hostname", "localhost"),
        wanted="Verify return code: 0 (ok)",
    )


@pytest.fixture(scope="module")
def gnutls() -> Verify:
    _needed("gnutls-cli")
    return lambda port, root: _asked(
        *("gnutls-cli", "--x509cafile", root, "--port", str(port), "localhost"),
        wanted="The certificate is trusted",
    )


@pytest.fixture(scope="module")
def mbedtls(tmp_path_factory: pytest.TempPathFactory) -> Verify:
    _needed("cc")
    if not Path("/usr/include/mbedtls/ssl.h").exists():
        pytest.skip("the headers of Mbed TLS are not installed")
    program = tmp_path_factory.mktemp("mbedtls") / "verify_server"
    libraries = ("-lmbedtls", "-lmbedx509", "-lmbedcrypto")
    subprocess.run(["cc", "-o", program, HERE / "verify_server.c", *libraries], check=True, timeout=120)
    return lambda port, root: _asked(program, str(port), root)


@pytest.fixture(scope="module")
def go(tmp_path_factory: pytest.TempPathFactory) -> Verify:
    _needed("go")
    program = tmp_path_factory.mktemp("go") / "verify_server"
    subprocess.run(["go", "build", "-o", program, HERE / "verify_server.go"], check=True, timeout=300)
    return lambda port, root: _asked(program, str(port), root)


@dataclass
class Rolled:
    """A served home and its roots, oldest first."""

    served: Served
    roots: list[Path]

    def unverified(self, verify: Verify) -> list[tuple[int, str, str]]:
        """Root, listener, and what the client says, wherever it could not verify the server."""
        return [
            (number, listener, said)
            for number, root in enumerate(self.roots)
            for listener in ("est", "mqtt", "http")
            if (said := verify(self.served.address(listener)[1], root))
        ]


@contextmanager
def path_length_of_roots(length: int) -> Iterator[None]:
    """As in homes that were made when roots, and the certificates that link them, had one."""
    extensions = authority._authority_extensions
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            authority,
            "_authority_extensions",
            lambda path_length: extensions(length if path_length is None else path_length),
        )
        yield


def new_home(folder: Path) -> Home:
    run_fleet(folder / "home", "init", "--name", "Acme", "--host", "localhost")
    return Home(folder / "home")


def served(home: Home) -> Rolled:
    authority = authority_of(home, "")
    roots = [*(each.certificate for each in reversed(authority.former_roots)), authority.root]
    files = [home.path.parent / f"root-{number}.pem" for number in range(len(roots))]
    for file, root in zip(files, roots, strict=True):
        file.write_bytes(pem(root))
    return Rolled(Served(home.path, home.path.parent / "ready.json").start(), files)


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rolled]:
    """Two rollovers of a root with path length 1."""
    with path_length_of_roots(1):
        home = new_home(tmp_path_factory.mktemp("twice"))
    for second in range(2):
        new_issuing_key(home, "", datetime.now(UTC) + timedelta(seconds=second), root_too=True)
    rolled = served(home)
    yield rolled
    rolled.served.stop()


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rolled]:
    """One rollover to a root that has path length 1 too, and that alone has signed the issuing CA."""
    with path_length_of_roots(1):
        home = new_home(tmp_path_factory.mktemp("before"))
        made = new_issuing_key(home, "", datetime.now(UTC), root_too=True)
    cross_file(home.ca, made.former_roots[0]).unlink()
    rolled = served(home)
    yield rolled
    rolled.served.stop()


@pytest.mark.parametrize("client", ["openssl", "gnutls", "mbedtls", "go"])
def test_a_client_with_any_one_root_verifies_every_listener(
    twice: Rolled, client: str, request: pytest.FixtureRequest
) -> None:
    assert len(twice.roots) == 3
    assert twice.unverified(request.getfixturevalue(client)) == []


@pytest.mark.parametrize(("client", "failing"), [("openssl", set()), ("go", set()), ("gnutls", {0}), ("mbedtls", {0})])
def test_a_home_that_was_rolled_over_before_serves_go_and_openssl(
    before: Rolled, client: str, failing: set[int], request: pytest.FixtureRequest
) -> None:
    """GnuTLS and Mbed TLS with the old root alone stay cut off: the present root has path length 1."""
    assert {number for number, _, _ in before.unverified(request.getfixturevalue(client))} == failing


@pytest.mark.parametrize("client", ["openssl", "gnutls", "mbedtls", "go"])
def test_a_root_that_has_signed_nothing_here_verifies_no_listener(
    twice: Rolled, client: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    stranger = tmp_path / "root.pem"
    stranger.write_bytes(pem(authority.create_root("Acme", datetime.now(UTC))[0]))
    assert len(Rolled(twice.served, [stranger]).unverified(request.getfixturevalue(client))) == 3
