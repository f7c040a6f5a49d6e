"""The certificates of a run, as OpenSSL sees them."""

import shutil
import subprocess
from pathlib import Path

import pytest

from hw_bench.certificates import Certificates, Identity, make_certificates

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("run") / "certificates", devices=2)


def verifies(certificates: Certificates, identity: Identity, purpose: str) -> bool:
    argv = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", str(certificates.anchors)]
    return subprocess.run([*argv, str(identity.certificate)], capture_output=True, check=False).returncode == 0


def test_a_server_and_its_devices_have_the_same_authority(certificates: Certificates) -> None:
    assert verifies(certificates, certificates.server, "sslserver")
    assert all(verifies(certificates, device, "sslclient") for device in certificates.devices)
    assert [device.name for device in certificates.devices] == ["bench-0000", "bench-0001"]


def test_a_stranger_has_another(certificates: Certificates) -> None:
    assert not verifies(certificates, certificates.stranger, "sslclient")


def test_keys_are_private(certificates: Certificates) -> None:
    files: list[Path] = [certificates.server.key, *(device.key for device in certificates.devices)]
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
