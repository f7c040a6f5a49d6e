"""CRLs of a served fleet: openssl refuses a revoked certificate in time, over plain HTTP, and after a kill too."""

import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fleet.domain.distribution import ca_name, plain_crl_path
from tests.serving import ANY_PORTS, Served, enroll, run_fleet
from tests.waiting import PATIENCE_SECONDS, wait_until

URL = "http://pki.example"
SECONDS_MAX = 60.0  # on a busy machine; the bound that is published is measured elsewhere


@pytest.fixture
def publishing(pristine_home: Path, tmp_path: Path) -> Iterator[Served]:
    home = Path(shutil.copytree(pristine_home, tmp_path / "home", symlinks=True))
    settings = (home / "fleet.toml").read_text()
    before, publish, behind = settings.partition("[publish]")
    behind = behind.replace('url = ""', f'url = "{URL}"', 1).replace('address = "off"', 'address = "127.0.0.1:0"', 1)
    (home / "fleet.toml").write_text(before + publish + behind.replace("max_delay = 5.0", "max_delay = 1.0"))
    serving = Served(home, tmp_path / "ready.json", ANY_PORTS).start()
    yield serving
    serving.stop()


def fetch(served: Served, path: str) -> bytes:
    with urllib.request.urlopen(served.endpoints["publish"] + path, timeout=PATIENCE_SECONDS) as answer:
        body: bytes = answer.read()
    return body


def verified(served: Served, folder: Path, certificate: Path) -> str:
    """What `openssl verify -crl_check_all` says, with the CRLs of its CAs; "" when it is well."""
    home, crls = served.home, b""
    for file in (certificate, home / "ca/issuing.pem"):
        crls += x509.load_der_x509_crl(fetch(served, plain_path(file))).public_bytes(Encoding.PEM)
    (folder / "crls.pem").write_bytes(crls)
    command = ["openssl", "verify", "-crl_check_all", "-CAfile", str(served.ca_file)]
    command += ["-untrusted", str(home / "ca/issuing.pem"), "-CRLfile", str(folder / "crls.pem"), str(certificate)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stderr


def plain_path(certificate: Path) -> str:
    """Of the CRL of its CA."""
    issued = x509.load_pem_x509_certificate(certificate.read_bytes())
    authority = issued.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    assert authority is not None
    return plain_crl_path(ca_name(authority))


def test_openssl_refuses_a_revoked_certificate(publishing: Served, tmp_path: Path) -> None:
    one = enroll(publishing, tmp_path, "cam-1")
    wait_until(lambda: run_fleet(publishing.home, "crl", "list", "-o", "json").count("full") == 3)
    assert verified(publishing, tmp_path, one) == ""
    run_fleet(publishing.home, "device", "suspend", "cam-1")
    took = wait_until(lambda: "certificate revoked" in verified(publishing, tmp_path, one))
    assert took < SECONDS_MAX
    print(f"openssl refuses {took:.2f} s after a suspension, with crl.max_delay = 1 s")


@pytest.mark.long  # within a round: tests/faults/test_kill_crl_round.py
def test_a_kill_loses_no_revocation(publishing: Served, tmp_path: Path) -> None:
    one = enroll(publishing, tmp_path, "cam-1")
    publishing.kill()
    run_fleet(publishing.home, "device", "revoke", "cam-1", "--crl-reason", "keyCompromise")
    publishing.start()
    wait_until(lambda: reasons(publishing, one) == ["keyCompromise"])
    assert publishing.stop() == 0
    run_fleet(publishing.home, "publish", str(tmp_path / "pki"))
    names = {file.relative_to(tmp_path / "pki").parts[0] for file in (tmp_path / "pki").rglob("*.c??")}
    assert names == {"ca", "crl"}


def reasons(served: Served, certificate: Path) -> list[str]:
    """In the CRL of its CA."""
    crl = x509.load_der_x509_crl(fetch(served, plain_path(certificate)))
    found = [entry.extensions.get_extension_for_class(x509.CRLReason) for entry in crl]
    return [reason.value.reason.value for reason in found]
