"""Go's OCSP client (golang.org/x/crypto/ocsp) at the responder of a served fleet."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.stock_device import needs
from tests.serving import ANY_PORTS, Served, enroll, run_fleet
from tests.waiting import wait_until

pytestmark = pytest.mark.long


@pytest.fixture
def client(tmp_path: Path) -> Path:
    needs("go")
    source = Path(shutil.copytree(Path(__file__).parent / "ocsp_client", tmp_path / "source"))
    fetched = subprocess.run(["go", "mod", "download"], cwd=source, capture_output=True, timeout=120, check=False)
    if fetched.returncode != 0:
        pytest.skip("golang.org/x/crypto/ocsp: cannot be fetched here")
    program = tmp_path / "ocsp_client"
    subprocess.run(["go", "build", "-o", program, "."], cwd=source, check=True, timeout=300)
    return program


@pytest.fixture
def publishing(tmp_path: Path) -> Iterator[Served]:
    home = tmp_path / "home"
    run_fleet(home, "init")
    before, publish, behind = (home / "fleet.toml").read_text().partition("[publish]")
    behind = behind.replace('address = "off"', 'address = "127.0.0.1:0"', 1)
    (home / "fleet.toml").write_text(before + publish + behind)
    serving = Served(home, tmp_path / "ready.json", ANY_PORTS).start()
    yield serving
    serving.stop()


def test_it_says_good_and_then_revoked_with_its_reason(client: Path, publishing: Served, tmp_path: Path) -> None:
    issuer = publishing.home / "ca/issuing.pem"

    def said(certificate: Path) -> list[str]:
        words = [client, publishing.endpoints["publish"] + "/ocsp", issuer, certificate]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout
        return done.stdout.splitlines()

    certificate = enroll(publishing, tmp_path, "cam-1")
    assert said(certificate) == ["good", "good"]
    run_fleet(publishing.home, "device", "revoke", "cam-1", "--crl-reason", "keyCompromise")
    wait_until(lambda: said(certificate) == ["revoked 1", "revoked 1"], "it is not revoked by POST and by GET")
    assert said(publishing.home / "server/server.pem") == ["good", "good"]
