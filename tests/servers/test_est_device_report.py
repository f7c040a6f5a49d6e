"""POST device-report: whose report is kept, and what is refused."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fleet.domain.access import Act
from fleet.services.revocation import suspend
from fleet.wire.device_report import REPORT_SIZE_MAX, sign_report
from tests.servers.est_fixtures import EstHarness, Identity, open_est

PATH = "/.well-known/est/device-report"
JSON = {"Content-Type": "application/json"}


@pytest.fixture
async def est(tmp_path: Path) -> AsyncIterator[EstHarness]:
    async with open_est(tmp_path) as harness:
        yield harness


async def sent(est: EstHarness, identity: Identity | None, body: bytes, headers: dict[str, str] = JSON) -> str:
    """The answer's code; "" when the report was taken."""
    answer = await est.send("POST", PATH, body, headers, identity=identity)
    assert (answer.status == 204) == (not answer.header("X-Error-Code")), answer.raw
    return answer.header("X-Error-Code") or ""


async def test_a_devices_own_report_is_kept(est: EstHarness) -> None:
    device = await est.enrolled("cam-1")
    for note in ("first", "second"):
        assert not await sent(est, device, sign_report({"device_id": "cam-1", "note": note}, device.key))
    kept = await est.registry.report_of("cam-1")
    assert kept is not None
    assert kept.text == '{"device_id": "cam-1", "note": "second"}'
    assert int(kept.serial, 16) == device.certificate.serial_number


async def test_no_other_report_is_taken(est: EstHarness) -> None:
    device, other = await est.enrolled("cam-1"), await est.enrolled("cam-2")
    good = sign_report({"device_id": "cam-1"}, device.key)
    assert await sent(est, None, good) == "no-certificate"
    assert await sent(est, other, good) == "bad-signature"
    assert await sent(est, other, sign_report({"device_id": "cam-1"}, other.key)) == "not-your-identity"
    assert await sent(est, await est.station(), good) == "not-a-device"
    assert await sent(est, device, good[:-1]) == "malformed"
    assert await sent(est, device, good + b" " * REPORT_SIZE_MAX) == "too-large"
    assert await sent(est, device, good, {"Content-Type": "text/plain"}) == "bad-content-type"
    assert (await est.send("GET", PATH, b"", {}, identity=device)).code == "bad-method"
    await suspend(est.registry, "cam-1", act=Act("test", est.clock()), reason="test")
    assert await sent(est, device, good) == "device-suspended"
    assert await est.registry.report_of("cam-1") is None
    assert await est.registry.report_of("cam-2") is None
