"""strongSwan's own EST client, `pki`, against our EST server: first enrollment, renewal, refusal."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from msgspec.structs import replace

from fleet.ca.keys import generate_key
from fleet.domain.access import Act
from fleet.domain.approval import WaitingLimits
from fleet.domain.model_rules import AdmissionPath, AdmissionRules
from fleet.services import approvals, inventory
from tests.servers.est_fixtures import EstHarness, csr_for, open_est, renewal_csr, run

pytestmark = pytest.mark.skipif(shutil.which("pki") is None, reason="strongSwan's pki is not installed")


@pytest.fixture
async def est(tmp_path: Path) -> AsyncIterator[EstHarness]:
    async with open_est(tmp_path) as est:
        yield est


async def pki_est(est: EstHarness, csr: bytes, *words: str | Path) -> tuple[int, bytes, str]:
    file = est.folder / "request.der"
    file.write_bytes(csr)
    common = ("--url", est.url, "--in", file, "--cacert", est.ca_file, "--interval", "1", "--outform", "pem")
    return await run("pki", "--est", *common, *words)


async def test_estca_fetches_root_and_issuing_ca(est: EstHarness, tmp_path: Path) -> None:
    out = tmp_path / "fetched.pem"
    code, _, said = await run(
        "pki", "--estca", "--url", est.url, "--cacert", est.ca_file, "--caout", out, "--outform", "pem"
    )
    assert code == 0, said
    assert x509.load_pem_x509_certificate(out.read_bytes()) == est.root[0]
    assert x509.load_pem_x509_certificate((tmp_path / "fetched-1.pem").read_bytes()) == est.issuing[0]


async def test_est_enrolls_by_token_and_renews_by_certificate(est: EstHarness) -> None:
    await est.device("cam-1")
    key = generate_key()
    code, pem, said = await pki_est(est, csr_for("cam-1", key), "--userpass", f"cam-1:{await est.token('cam-1')}")
    assert code == 0, said
    first = est.identity(x509.load_pem_x509_certificate(pem), key)
    assert first.certificate.public_key() == key.public_key()
    code, pem, said = await pki_est(est, renewal_csr(first), "--cert", first.cert_file, "--key", first.key_file)
    assert code == 0, said
    second = x509.load_pem_x509_certificate(pem)
    assert second.subject == first.certificate.subject
    assert second.public_key() != first.certificate.public_key()


async def test_a_certificate_with_a_hardware_module_name_is_read(est: EstHarness) -> None:
    await est.device("cam-1", serial="SN1")
    code, pem, said = await pki_est(est, csr_for("cam-1"), "--userpass", f"cam-1:{await est.token('cam-1')}")
    assert code == 0, said
    assert b"SN1" in x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)


async def test_a_request_made_by_pki_itself_is_taken(est: EstHarness, tmp_path: Path) -> None:
    key = generate_key()
    key_file = tmp_path / "device.pem"
    key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()))
    code, csr, said = await run(
        "pki", "--req", "--in", key_file, "--type", "ecdsa", "--dn", "CN=cam-1", "--san", "cam-1.example"
    )
    assert code == 0, said
    code, pem, said = await pki_est(est, csr, "--userpass", f"cam-1:{await est.token(model='cam')}")
    assert code == 0, said
    assert x509.load_pem_x509_certificate(pem).public_key() == key.public_key()


async def test_est_without_a_right_gets_nothing(est: EstHarness) -> None:
    await est.device("cam-1")
    for words in ((), ("--userpass", "cam-1:wrong.token")):
        code, pem, _ = await pki_est(est, csr_for("cam-1"), *words)
        assert code != 0
        assert pem == b""


async def until(holds: Callable[[], bool], asking: asyncio.Task[tuple[int, bytes, str]]) -> None:
    """Return when `holds()`, while pki asks: a counter tells nobody that it has changed."""
    async with asyncio.timeout(240):
        while not holds():
            assert not asking.done(), asking.result()
            await asyncio.sleep(0.05)


async def test_est_waits_until_an_operator_says_yes(tmp_path: Path) -> None:
    """pki asks again with the same CSR for as long as it is answered 202, at the times of Retry-After."""
    async with open_est(tmp_path, waiting=WaitingLimits(ask_again_seconds=1)) as est:
        cam = await est.registry.model("cam")
        assert cam is not None
        opened = replace(cam, rules=replace(cam.rules, admission=AdmissionRules((AdmissionPath.APPROVAL,))))
        await inventory.set_model(est.registry, opened, act=Act("test", est.clock()))
        await est.device("cam-1")
        key = generate_key()
        asking = asyncio.create_task(pki_est(est, csr_for("cam-1", key)))
        await until(lambda: est.servers["est"].counters["202 approval-pending"] >= 2, asking)
        (waiting,) = await est.registry.requests(now=est.clock())
        await approvals.approve(est.registry, waiting.id, act=Act("operator", est.clock()))
        code, pem, said = await asking
        assert code == 0, said
        assert x509.load_pem_x509_certificate(pem).public_key() == key.public_key()
        assert len(await est.registry.credentials("cam-1")) == 1


async def test_est_hears_a_no(tmp_path: Path) -> None:
    async with open_est(tmp_path, waiting=WaitingLimits(ask_again_seconds=1)) as est:
        cam = await est.registry.model("cam")
        assert cam is not None
        opened = replace(cam, rules=replace(cam.rules, admission=AdmissionRules((AdmissionPath.APPROVAL,))))
        await inventory.set_model(est.registry, opened, act=Act("test", est.clock()))
        await est.device("cam-1")
        asking = asyncio.create_task(pki_est(est, csr_for("cam-1")))
        await until(lambda: est.servers["est"].counters["202 approval-pending"] >= 1, asking)
        (waiting,) = await est.registry.requests(now=est.clock())
        await approvals.deny(est.registry, waiting.id, act=Act("operator", est.clock()))
        code, pem, _ = await asking
        assert code != 0
        assert pem == b""


async def test_est_does_not_renew_another_device(est: EstHarness) -> None:
    one, other = await est.enrolled("cam-1"), await est.enrolled("cam-2")
    code, pem, _ = await pki_est(est, renewal_csr(other), "--cert", one.cert_file, "--key", one.key_file)
    assert code != 0
    assert pem == b""
