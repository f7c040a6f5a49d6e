"""OCSP of a served fleet with two workers: good, then revoked at both; stapled at EST."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving import ANY_PORTS, Served, enroll, run_fleet

SECONDS_MAX = 60.0  # on a busy machine: kept answers end with the event
ASKED = 8  # of two workers, so many fresh connections reach both


@pytest.fixture
def publishing(pristine_home: Path, tmp_path: Path) -> Iterator[Served]:
    home = Path(shutil.copytree(pristine_home, tmp_path / "home", symlinks=True))
    before, publish, behind = (home / "fleet.toml").read_text().partition("[publish]")
    behind = behind.replace('address = "off"', 'address = "127.0.0.1:0"', 1)
    (home / "fleet.toml").write_text(before + publish + behind)
    serving = Served(home, tmp_path / "ready.json", (*ANY_PORTS, "--workers", "2")).start()
    yield serving
    serving.stop()


def openssl(*words: str) -> str:
    done = subprocess.run(["openssl", *words], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    return done.stdout + done.stderr


def states(served: Served, certificate: Path) -> set[str]:
    """What the workers say of it, with a nonce and without."""
    asked = ("ocsp", "-url", served.endpoints["publish"] + "/ocsp", "-CAfile", str(served.ca_file))
    about = ("-issuer", str(served.home / "ca/issuing.pem"), "-cert", str(certificate))
    found = set()
    for number in range(ASKED):
        said = openssl(*asked, *about, "-nonce" if number % 2 else "-no_nonce")
        assert "Response verify OK" in said, said
        found.add(said.partition(f"{certificate}: ")[2].split()[0])
    return found


def test_a_revocation_reaches_every_worker(publishing: Served, tmp_path: Path) -> None:
    certificate = enroll(publishing, tmp_path, "cam-1")
    assert states(publishing, certificate) == {"good"}
    assert states(publishing, publishing.home / "server/server.pem") == {"good"}
    run_fleet(publishing.home, "device", "revoke", "cam-1")
    began = time.monotonic()
    while states(publishing, certificate) != {"revoked"}:
        assert time.monotonic() - began < SECONDS_MAX
    print(f"every worker says revoked {time.monotonic() - began:.2f} s after the revocation at the latest")

    host, port = publishing.address("est")
    said = openssl("s_client", "-connect", f"{host}:{port}", "-CAfile", str(publishing.ca_file), "-status")
    assert "OCSP Response Status: successful" in said, said
    assert publishing.stop() == 0
