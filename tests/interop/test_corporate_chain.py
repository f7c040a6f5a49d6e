"""An issuing CA two levels below a corporate root: every listener, by clients that trust that root alone; and what its
certificates name, fetched by ours and verified by OpenSSL.
"""

import json
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fleet.ca.key_identifiers import identifier_of
from fleet.home.authorities import authority_of
from fleet.home.http_fetch import fetch_over_http
from fleet.home.layout import Home
from tests.free_ports import free_ports
from tests.home.corporate import below, corporate_root
from tests.interop.test_root_rollover import Rolled, gnutls, go, mbedtls, openssl
from tests.serving import Served, run_agent, run_fleet
from tests.tenant_fixtures import pem
from tests.waiting import PATIENCE_SECONDS

__all__ = ["gnutls", "go", "mbedtls", "openssl"]  # fixtures


@pytest.fixture(scope="module")
def corporate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rolled]:
    """A served home whose issuing CA the second of two corporate CAs has signed; its first root, and the corporate."""
    folder = tmp_path_factory.mktemp("corporate")
    home = Home(folder / "home")
    run_fleet(home.path, "init", "--name", "Acme", "--host", "localhost")
    shutil.copy(home.root_certificate, folder / "first.pem")
    now = datetime.now(UTC)
    root = corporate_root("Corp Root", now, is_rsa=True)
    policy = below(root, "Corp Policy CA", now, path_length=2)
    upper = below(policy, "Corp Issuing CA", now, path_length=1)
    asked = x509.load_pem_x509_csr(run_fleet(home.path, "ca", "csr").encode())
    issuing = upper.signed(asked.subject, asked.public_key(), now)
    answer = folder / "answer.pem"
    answer.write_bytes(pem(issuing, upper.certificate, policy.certificate, root.certificate))
    made = json.loads(run_fleet(home.path, "ca", "import", str(answer), "-o", "json"))
    assert made["chain"] == ["CN=Corp Issuing CA", "CN=Corp Policy CA", "CN=Corp Root"]
    (folder / "corp.pem").write_bytes(pem(root.certificate))
    (port,) = free_ports(1)
    text = home.settings_file.read_text()
    text = text.replace('url = ""', f'url = "http://127.0.0.1:{port}"').replace("shards = 1\n", "shards = 4\n")
    before, publish, behind = text.partition("[publish]")
    behind = behind.replace('address = "off"', f'address = "127.0.0.1:{port}"', 1)
    home.settings_file.write_text(before + publish + behind)
    home.server_chain.unlink()  # the next start issues one that names them
    rolled = Rolled(Served(home.path, folder / "ready.json").start(), [folder / "corp.pem", folder / "first.pem"])
    ca = identifier_of(authority_of(home, "").issuing).hex()
    for shard in range(4):
        rolled.served.wait_for_line(f"event=crl path=/crl/{ca}/{shard}-of-4.crl ")
    yield rolled
    rolled.served.stop()


@pytest.mark.parametrize("client", ["openssl", "go", "mbedtls", "gnutls"])
def test_clients_of_either_root_verify_every_listener(
    corporate: Rolled, client: str, request: pytest.FixtureRequest
) -> None:
    assert corporate.unverified(request.getfixturevalue(client)) == []


def test_what_certificates_name_is_there_and_right(corporate: Rolled) -> None:
    home = corporate.served.home
    rows = json.loads(run_fleet(home, "ca", "check", "-o", "json"))
    assert {row["state"] for row in rows} == {"ok"}, rows
    ca = identifier_of(authority_of(Home(home), "").issuing).hex()
    shards = [row["url"] for row in rows if row["what"] == "crl" and f"/crl/{ca}/" in row["url"]]
    assert len(shards) == 4
    assert {row["what"] for row in rows} == {"crl", "ocsp", "ca"}


def test_openssl_verifies_a_certificate_by_the_shard_that_it_names(corporate: Rolled, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    home = corporate.served.home
    server = x509.load_pem_x509_certificates(Home(home).server_chain.read_bytes())[0]
    points = server.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    names = points[0].full_name
    assert names is not None
    fetched = fetch_over_http(names[0].value, None)
    crl = tmp_path / "shard.pem"
    crl.write_bytes(x509.load_der_x509_crl(fetched).public_bytes(Encoding.PEM))
    leaf = tmp_path / "server.pem"
    leaf.write_bytes(pem(server))
    words: list[str | Path] = [
        "openssl",
        "verify",
        "-crl_check",
        "-extended_crl",
        "-CAfile",
        corporate.roots[0],
        "-CRLfile",
        crl,
    ]
    words += ["-untrusted", Home(home).issuing_certificate, leaf]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("root", [0, 1], ids=["corporate root", "first root"])
def test_a_device_that_trusts_either_root_enrolls_and_is_verified_by_it(
    corporate: Rolled, root: int, tmp_path: Path
) -> None:
    served, device = corporate.served, f"cam-{root}"
    run_fleet(served.home, "device", "add", device, "--model", "default")
    token = tmp_path / "token"
    run_fleet(served.home, "token", "create", "--device", device, "--out", str(token))
    est, mqtt = (served.address(door)[1] for door in ("est", "mqtt"))
    agent = tmp_path / device
    ca = corporate.roots[root]
    words = ("--est", f"https://localhost:{est}", "--mqtt", f"localhost:{mqtt}", "--ca", str(ca))
    run_agent(agent, "init", "--device-id", device, *words)
    run_agent(agent, "enroll", "--token-file", str(token))
    issued = x509.load_pem_x509_certificates((agent / "current" / "cert.pem").read_bytes())
    assert issued[0].extensions.get_extension_for_class(x509.CRLDistributionPoints)
    chain = agent / "current" / "cert.pem"
    verify: list[str | Path] = ["openssl", "verify", "-CAfile", ca, "-untrusted", chain, chain]
    done = subprocess.run(verify, capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS)
    assert done.returncode == 0, done.stderr
