"""A served fleet believes makers' CAs as they come and go, in every worker, with no restart."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet.ca.keys import generate_key
from fleet.wire.csr import build_csr
from fleet.wire.est import encode_body
from hw_bench.peers.home import disable_rate_limits
from tests.servers.est_fixtures import Identity
from tests.servers.makers import new_maker
from tests.serving import ANY_PORTS, Served, run_fleet
from tests.waiting import PATIENCE_SECONDS

IN_A_ROW = 24  # at workers that the kernel's dice choose: that one of two was never asked has a chance of 2^-23
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


@pytest.fixture
def pair(home: Path, tmp_path: Path) -> Iterator[Served]:
    disable_rate_limits(home / "fleet.toml")  # one and the same certificate is refused again and again
    serving = Served(home, tmp_path / "ready.json", (*ANY_PORTS, "--workers", "2")).start()
    yield serving
    serving.stop()


def ask(served: Served, shown: Identity, id_: str) -> str:
    """The status of a simpleenroll by `shown`; "000" when TLS refused it."""
    body = shown.cert_file.with_suffix(".csr")
    body.write_bytes(encode_body(build_csr(generate_key(), (("2.5.4.3", id_),), ())))
    command = ["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "--cacert", str(served.ca_file)]
    command += ["--cert", str(shown.cert_file), "--key", str(shown.key_file)]
    command += ["-H", "Content-Type: application/pkcs10", "--data-binary", f"@{body}"]
    url = f"{served.est}/.well-known/est/simpleenroll"
    return subprocess.run([*command, url], capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS).stdout


def settles_on(served: Served, shown: Identity, id_: str, status: str) -> None:
    """Every worker comes to answer with `status`."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    row = 0
    while row < IN_A_ROW:
        row = row + 1 if ask(served, shown, id_) == status else 0
        assert time.monotonic() < deadline, f"{status} {row} times in a row"


@needs_curl
def test_every_worker_follows(pair: Served, tmp_path: Path) -> None:
    maker = new_maker()
    shown, stranger = maker.device(tmp_path, "SN1"), maker.device(tmp_path, "SN2")
    (tmp_path / "acme.pem").write_bytes(maker.pem)
    (tmp_path / "m.csv").write_text("device_id,model,hardware_serial\ncam-1,default,SN1\n")
    run_fleet(pair.home, "model", "set", "default", "--admit", "token", "--admit", "idevid")
    run_fleet(pair.home, "device", "import", str(tmp_path / "m.csv"))
    assert ask(pair, shown, "cam-1") == "000"
    run_fleet(pair.home, "anchor", "add", "acme", str(tmp_path / "acme.pem"), "--model", "default")
    settles_on(pair, stranger, "cam-1", "403")
    assert ask(pair, shown, "cam-1") == "200"
    run_fleet(pair.home, "anchor", "remove", "acme")
    settles_on(pair, shown, "cam-1", "000")
