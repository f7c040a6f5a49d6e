"""The forecast: what is counted into which week, and what is worth a warning."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from msgspec import structs
from msgspec.structs import replace

from fleet.domain.access import Act
from fleet.domain.changes import AuditEntry, Change
from fleet.domain.device import Device, DeviceId, DeviceState, Model
from fleet.domain.model_rules import ModelRules
from fleet.domain.writes import Insert
from fleet.services import inventory
from fleet.services.forecast import Forecast, OwnCertificate, Week, forecast
from fleet.storage.sqlite.registry import SqliteRegistry

NOW = datetime(2026, 3, 4, 12, tzinfo=UTC)  # a Wednesday
MONDAY = datetime(2026, 3, 2, tzinfo=UTC)
DAY, WEEK = timedelta(days=1), timedelta(weeks=1)
ROOT = OwnCertificate("root", "CN=root", NOW + 5000 * DAY)
ISSUING = OwnCertificate("issuing", "CN=issuing", NOW + 3000 * DAY)
SERVER = OwnCertificate("server", "CN=localhost", NOW + 300 * DAY)


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[SqliteRegistry]:
    opened = await SqliteRegistry.open(tmp_path / "registry.db")
    await inventory.add_model(opened, Model("cam2"), act=Act("operator", NOW))
    yield opened
    await opened.close()


async def fill(registry: SqliteRegistry, ends: list[datetime | None], state: DeviceState = DeviceState.ACTIVE) -> None:
    device = Device(DeviceId(""), "cam2", state, NOW)
    start = await registry.count_devices()
    writes = tuple(
        Insert(structs.replace(device, id=DeviceId(f"d{start + n}"), expires_at=end)) for n, end in enumerate(ends)
    )
    await registry.commit(Change(AuditEntry(NOW, "test", "prepare", "", "ok"), writes))


async def look(registry: SqliteRegistry, *own: OwnCertificate, weeks: int = 4, cliff_percent: float = 25.0) -> Forecast:
    return await forecast(registry, own or (ROOT, ISSUING, SERVER), now=NOW, weeks=weeks, cliff_percent=cliff_percent)


async def test_each_in_its_week(registry: SqliteRegistry) -> None:
    await fill(registry, [MONDAY - DAY, MONDAY, NOW, MONDAY + WEEK, MONDAY + 3 * WEEK, MONDAY + 4 * WEEK, None])
    await fill(registry, [NOW], DeviceState.REVOKED)
    await inventory.create_token(
        registry, model="cam2", terms=inventory.TokenTerms(ttl=8 * DAY), act=Act("operator", NOW)
    )
    gone, _ = await inventory.create_token(registry, model="cam2", act=Act("operator", NOW))
    await inventory.revoke_token(registry, gone.id, act=Act("operator", NOW))
    seen = await look(registry, ROOT, ISSUING, replace(SERVER, not_after=MONDAY + 3 * WEEK))
    assert (seen.devices, seen.overdue, seen.warnings) == (6, 1, ())
    assert seen.weeks == (
        Week(MONDAY, devices=2),
        Week(MONDAY + WEEK, devices=1, tokens=1),
        Week(MONDAY + 2 * WEEK),
        Week(MONDAY + 3 * WEEK, devices=1, authorities=("server",)),
    )


async def test_nothing_there_is_nothing_to_warn_of(registry: SqliteRegistry) -> None:
    assert await look(registry, weeks=1) == Forecast(0, 0, (Week(MONDAY),), ())


async def codes(registry: SqliteRegistry, *own: OwnCertificate) -> list[str]:
    return [w.code for w in (await look(registry, *own)).warnings]


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ((ROOT, ISSUING, SERVER), []),
        ((ROOT, replace(ISSUING, not_after=NOW + 91 * DAY)), []),
        ((ROOT, replace(ISSUING, not_after=NOW + 89 * DAY)), ["authority-cuts-certificates"]),
        ((replace(ROOT, not_after=NOW + 89 * DAY), ISSUING), ["authority-cuts-certificates"]),
        ((ROOT, replace(ISSUING, not_after=NOW + 20 * DAY)), ["authority-ends", "authority-cuts-certificates"]),
        ((ROOT, replace(ISSUING, not_after=NOW - DAY)), ["authority-ended"]),
        ((ROOT, replace(SERVER, not_after=NOW + 15 * DAY)), []),
        ((ROOT, replace(SERVER, not_after=NOW + 13 * DAY)), ["server-ends"]),
        ((ROOT, replace(SERVER, not_after=NOW)), ["server-ended"]),
    ],
)
async def test_what_ends_above_the_devices(
    registry: SqliteRegistry, own: tuple[OwnCertificate, ...], expected: list[str]
) -> None:
    assert await codes(registry, *own) == expected


async def test_it_names_the_models_whose_certificates_are_cut(registry: SqliteRegistry) -> None:
    for name in ("a", "b", "c", "short"):
        days = 10 if name == "short" else 90
        await inventory.add_model(registry, Model(name, days * DAY), act=Act("operator", NOW))
    (warning,) = (await look(registry, ROOT, replace(ISSUING, not_after=NOW + 60 * DAY))).warnings
    assert "models a, b, c and 1 more are cut already: the issuing CA has 60 days left" in warning.message


async def test_a_tenants_ca_cuts_the_certificates_of_its_own_models(registry: SqliteRegistry) -> None:
    of_a = OwnCertificate("issuing", "CN=a", NOW + 60 * DAY, tenant="a")
    for name, tenant in (("own", ""), ("a-cam", "a"), ("b-cam", "b")):
        model = Model(name, 90 * DAY, rules=ModelRules(tenant))
        await inventory.add_model(registry, model, act=Act("operator", NOW), tenants=("a", "b"))
    seen = await look(registry, ROOT, ISSUING, of_a, weeks=20)
    messages = {warning.code: warning.message for warning in seen.warnings}
    cut = messages["authority-cuts-certificates"]
    assert "Certificates of model a-cam are cut already: the issuing CA of a has 60 days left" in cut
    assert messages["authority-ends"].startswith("The issuing CA of a CN=a ends on ")
    assert [role for week in seen.weeks for role in week.authorities] == ["issuing of a"]


async def test_a_cliff(registry: SqliteRegistry) -> None:
    steady = [MONDAY + n * WEEK for n in range(10)] * 9
    await fill(registry, [*steady, *[MONDAY + 2 * WEEK + DAY] * 10])
    assert (await look(registry)).warnings == ()  # 19 of 100
    await fill(registry, [MONDAY + 2 * WEEK] * 20)
    (warning,) = (await look(registry)).warnings
    assert warning.code == "cliff"
    assert "39 of 120 devices (32 %)" in warning.message
    assert "week of 2026-03-16" in warning.message
    assert (await look(registry, cliff_percent=40)).warnings == ()


async def test_short_lives_end_every_week_and_a_few_devices_are_no_cliff(registry: SqliteRegistry) -> None:
    await fill(registry, [NOW] * 19)
    assert await codes(registry) == []
    await fill(registry, [NOW])
    assert await codes(registry) == ["cliff"]
    model = await registry.model("cam2")
    assert model is not None
    await inventory.set_model(registry, structs.replace(model, certificate_lifetime=7 * DAY), act=Act("operator", NOW))
    assert await codes(registry) == []
