import json
from collections.abc import AsyncIterator
from itertools import product
from pathlib import Path

import pytest

from fleet.domain.access import Act
from fleet.services import revocation
from tests.servers.est_fixtures import EstHarness, Identity, KeptAlive, basic, open_est


@pytest.fixture
async def est(tmp_path: Path) -> AsyncIterator[EstHarness]:
    async with open_est(tmp_path) as est:
        yield est


async def get(est: EstHarness, path: str, identity: Identity | None = None) -> tuple[int, dict[str, object]]:
    answer = await est.send("GET", path, server="admin", identity=identity)
    kind = "application/json" if answer.status == 200 else "application/problem+json"
    assert answer.header("Content-Type") == kind
    return answer.status, json.loads(answer.body)


async def test_health_is_open(est: EstHarness) -> None:
    assert await get(est, "/healthz") == (200, {"status": "ok"})


async def test_health_says_when_the_registry_is_gone(est: EstHarness) -> None:
    await est.registry.close()
    status, problem = await get(est, "/healthz")
    assert status == 503
    assert problem["status"] == 503


async def test_a_device_and_a_station_learn_who_they_are(est: EstHarness) -> None:
    device, station = await est.enrolled("cam-1"), await est.station("line-1")
    for identity, holder, kind in ((device, "cam-1", "device"), (station, "line-1", "station")):
        assert await get(est, "/v1/whoami", identity) == (
            200,
            {
                "holder": holder,
                "kind": kind,
                "serial": f"{identity.certificate.serial_number:x}",
                "not_after": identity.certificate.not_valid_after_utc.isoformat().replace("+00:00", "Z"),
                "state": "issued",
            },
        )


async def test_status_is_for_stations(est: EstHarness) -> None:
    status, counters = await get(est, "/v1/status", await est.station())
    assert status == 200
    assert counters.pop("uptime_seconds") >= 0  # type: ignore[operator]
    assert counters == {"est": {"200": 1}}
    assert (await get(est, "/v1/status", await est.enrolled()))[1]["code"] == "not-for-you"


async def test_a_refusal_is_a_problem_with_a_code(est: EstHarness) -> None:
    assert await get(est, "/v1/whoami") == (
        401,
        {
            "title": "Unauthorized",
            "status": 401,
            "detail": "A client certificate is needed.",
            "code": "no-certificate",
        },
    )
    device = await est.enrolled()
    await revocation.revoke(est.registry, "cam-1", act=Act("test", est.clock()))
    status, problem = await get(est, "/v1/whoami", device)
    assert (status, problem["code"]) == (403, "device-revoked")


METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT")
PATHS = (
    "/healthz",
    "/v1/whoami",
    "/v1/status",
    "/",
    "/v1",
    "/v1/",
    "/v1/whoami/",
    "/v1//status",
    "/v2/status",
    "/%68ealthz",
)
OPEN = {("GET", "/healthz", who) for who in ("nobody", "token", "device", "revoked", "station")}
OPEN |= {("GET", "/v1/whoami", "device"), ("GET", "/v1/whoami", "station"), ("GET", "/v1/status", "station")}
OPEN |= {("HEAD", path, who) for _, path, who in OPEN}


async def test_only_what_is_named_is_let_in(est: EstHarness) -> None:
    revoked = await est.enrolled("cam-2")
    await revocation.revoke(est.registry, "cam-2", act=Act("test", est.clock()))
    kinds: dict[str, tuple[Identity | None, dict[str, str]]] = {
        "nobody": (None, {}),
        "token": (None, basic(await est.token(model="cam"))),
        "device": (await est.enrolled("cam-1"), {}),
        "revoked": (revoked, {}),
        "station": (await est.station(), {}),
    }
    for who, (identity, headers) in kinds.items():
        client = KeptAlive(est, identity, "admin")
        for method, path in product(METHODS, PATHS):
            answer = await client.send(method, path, headers=headers)
            if (method, path, who) in OPEN:
                assert answer.status == 200, (who, method, path)
            else:
                assert answer.status in (400, 401, 403, 404, 405), (who, method, path)
                if method == "GET" and path in ("/v1/whoami", "/v1/status"):
                    assert answer.status in (401, 403), (who, path)
        client.close()
