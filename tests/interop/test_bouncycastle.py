"""BouncyCastle's stock EST client: it sends its token in answer to a challenge, and waits for an approval by a 202."""

import asyncio
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from fleet.domain.access import Act
from fleet.domain.approval import WaitingLimits
from fleet.domain.model_rules import AdmissionPath, AdmissionRules
from fleet.services import approvals, inventory
from tests.interop.stock_device import needs
from tests.servers.est_fixtures import EstHarness, open_est, run
from tests.waiting import PATIENCE_SECONDS

pytestmark = pytest.mark.long

CLIENTS = Path(__file__).parent / "clients"
INSTALL_SECONDS_MAX = 240


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    needs("java", "javac", "mvn")
    folder = tmp_path_factory.mktemp("bouncycastle")
    fetch = ("mvn", "-B", "-q", "-f", CLIENTS / "pom.xml", "dependency:copy-dependencies")
    try:
        where = (f"-DoutputDirectory={folder}", f"-Dmdep.outputDirectory={folder}")
        subprocess.run((*fetch, *where), capture_output=True, timeout=INSTALL_SECONDS_MAX, check=True)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"BouncyCastle: cannot be installed: {error}")
    subprocess.run(("javac", "-cp", f"{folder}/*", "-d", folder, CLIENTS / "EstEnroll.java"), check=True)
    return ("java", "-cp", f"{folder}/*:{folder}", "EstEnroll")


@pytest.fixture
async def est(tmp_path: Path) -> AsyncIterator[EstHarness]:
    async with open_est(tmp_path, waiting=WaitingLimits(ask_again_seconds=1)) as est:
        yield est


async def admits(est: EstHarness, *paths: AdmissionPath) -> None:
    cam = await est.registry.model("cam")
    assert cam is not None
    opened = replace(cam, rules=replace(cam.rules, admission=AdmissionRules(paths)))
    await inventory.set_model(est.registry, opened, act=Act("test", est.clock()))


def server_of(est: EstHarness) -> str:
    return f"localhost:{est.listeners['est'].port}"


@pytest.mark.parametrize("paths", [(AdmissionPath.TOKEN,), (AdmissionPath.TOKEN, AdmissionPath.APPROVAL)])
async def test_by_token(
    est: EstHarness, program: tuple[str, ...], tmp_path: Path, paths: tuple[AdmissionPath, ...]
) -> None:
    """Where a request may wait for approval, too, the token comes first."""
    await admits(est, *paths)
    file = tmp_path / "token"
    file.write_text(await est.token(model="cam"))
    code, out, said = await run(*program, server_of(est), est.ca_file, "cam", "new-1", file)
    assert code == 0, said
    [held] = await est.registry.credentials("new-1")
    assert f" {held.serial}" in out.decode()
    assert await est.registry.requests(now=est.clock()) == []


async def test_a_wrong_token_is_refused(est: EstHarness, program: tuple[str, ...], tmp_path: Path) -> None:
    (file := tmp_path / "token").write_text("0123456789ab.wrong")
    code, _, said = await run(*program, server_of(est), est.ca_file, "cam", "new-1", file)
    assert code != 0
    assert "401" in said or "uthoriz" in said
    assert await est.registry.device("new-1") is None


async def test_by_approval(est: EstHarness, program: tuple[str, ...]) -> None:
    await admits(est, AdmissionPath.APPROVAL)
    asking = asyncio.create_task(run(*program, server_of(est), est.ca_file, "cam", "new-1", "-"))
    async with asyncio.timeout(PATIENCE_SECONDS):
        async for event in est.registry.follow(await est.registry.last_event()):
            if event.kind == "request.pending":
                await approvals.approve(est.registry, event.subject, act=Act("operator", est.clock()))
                break
    code, out, said = await asking
    assert code == 0, said
    assert out.decode().startswith("pending\n")
    assert "issued" in out.decode()
    assert len(await est.registry.credentials("new-1")) == 1
