"""First certificates by a key that the manifest lists, and the day's quota of a station, over real TLS."""

import hashlib
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from msgspec.structs import replace

from fleet.ca.keys import generate_key
from fleet.domain.access import Act
from fleet.domain.device import DeviceId
from fleet.domain.issuance_context import COMMON_NAME, SERIAL_NUMBER
from fleet.domain.manifest import ManifestRow
from fleet.domain.model_rules import DEFAULT_RULES, AdmissionPath, AdmissionRules, ProfileRules
from fleet.services import inventory, revocation
from fleet.services.importing import Importer, Numbered
from fleet.wire.csr import build_csr
from tests.servers.est_fixtures import EstHarness, Key, basic, csr_for, open_est, renewal_csr

CAM_1 = DeviceId("cam-1")


@pytest.fixture
async def est(tmp_path: Path) -> AsyncIterator[EstHarness]:
    async with open_est(tmp_path) as est:
        await admits(est, AdmissionPath.TOKEN, AdmissionPath.STATION, AdmissionPath.MANIFEST)
        yield est


async def admits(est: EstHarness, *paths: AdmissionPath, profile: ProfileRules = DEFAULT_RULES.profile) -> None:
    old = await est.registry.model("cam")
    assert old is not None
    rules = replace(old.rules, admission=AdmissionRules(paths=paths), profile=profile)
    await inventory.set_model(est.registry, replace(old, rules=rules), act=Act("test", est.clock()))


def key_sha256(key: Key) -> bytes:
    return hashlib.sha256(key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()


async def listed(est: EstHarness, row: ManifestRow) -> None:
    importer = Importer(est.registry, "test", est.clock, "bulk")
    assert await importer.take([Numbered(2, row)]) == []


async def verdict(est: EstHarness, id_: str, key: Key | None = None, label: str = "") -> tuple[int, str]:
    answer = await est.enroll(csr_for(id_, key), label=label)
    return answer.status, answer.code if answer.status != 200 else ""


async def rows(est: EstHarness) -> list[tuple[str, str, str]]:
    entries = [row.entry for row in await est.registry.audit()]
    return [(e.actor, e.subject, e.outcome) for e in entries if e.actor != "test"]


async def test_a_listed_key_is_all_it_takes(est: EstHarness) -> None:
    key = generate_key()
    await listed(est, ManifestRow(CAM_1, "cam", "SN1", key_sha256(key), (("lot", "L7"),)))
    answer = await est.enroll(csr_for("cam-1", key))
    assert answer.status == 200, answer.text
    assert answer.certificates[0].subject.rfc4514_string() == "2.5.4.5=SN1,CN=cam-1"
    own = est.identity(answer.certificates[0], key)
    assert (await est.reenroll(renewal_csr(own), own)).status == 200
    assert ("manifest cam-1", "device cam-1", "ok") in await rows(est)


async def test_another_key_is_nobodys(est: EstHarness) -> None:
    key = generate_key()
    await listed(est, ManifestRow(CAM_1, "cam", "SN1", key_sha256(key)))
    assert await verdict(est, "cam-1") == (401, "no-credentials")
    assert ("nobody", "device cam-1", "no-credentials") in await rows(est)
    assert await verdict(est, "cam-2", key) == (403, "not-your-identity")
    assert await verdict(est, "cam-1", key, "pump") == (401, "no-credentials")  # pump lets no stranger ask
    assert ("manifest cam-1", "device cam-2", "not-your-identity") in await rows(est)


async def test_a_key_that_is_not_ones_own_is_not_proved(est: EstHarness) -> None:
    """Who knows the public key of a listed device can't sign with it."""
    key, other = generate_key(), generate_key()
    await listed(est, ManifestRow(CAM_1, "cam", "", key_sha256(key)))
    theirs, mine = csr_for("cam-1", key), csr_for("cam-1", other)
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    own = other.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    forged = mine.replace(own, spki)
    assert forged != theirs
    answer = await est.enroll(forged)
    assert (answer.status, answer.code) == (400, "bad-signature")


async def test_a_serial_alone_is_no_proof(est: EstHarness) -> None:
    await listed(est, ManifestRow(CAM_1, "cam", "SN1"))
    assert await verdict(est, "cam-1") == (401, "no-credentials")


async def test_the_models_rule_decides(est: EstHarness) -> None:
    key = generate_key()
    await listed(est, ManifestRow(CAM_1, "cam", "", key_sha256(key)))
    await admits(est, AdmissionPath.TOKEN)
    assert await verdict(est, "cam-1", key) == (401, "no-credentials")  # no model lets a stranger ask
    await admits(est, AdmissionPath.IDEVID)
    assert await verdict(est, "cam-1", key) == (401, "no-credentials")


async def test_a_lost_answer_comes_again(est: EstHarness) -> None:
    key = generate_key()
    await listed(est, ManifestRow(CAM_1, "cam", "", key_sha256(key)))
    answers = [await est.enroll(csr_for("cam-1", key)) for _ in range(3)]
    assert len({answer.certificates[0].serial_number for answer in answers}) == 1


async def test_the_listed_key_again_after_use_but_not_once_it_has_moved_on(est: EstHarness) -> None:
    key, later = generate_key(), generate_key()
    await listed(est, ManifestRow(CAM_1, "cam", "", key_sha256(key)))
    own = est.identity((await est.enroll(csr_for("cam-1", key))).certificates[0], key)
    assert (await est.reenroll(renewal_csr(own, key), own)).status == 200
    assert await verdict(est, "cam-1", key) == (200, "")
    renewed = await est.reenroll(renewal_csr(own, later), own)
    assert renewed.status == 200, renewed.text
    newest = est.identity(renewed.certificates[0], later)
    assert (await est.reenroll(renewal_csr(newest), newest)).status == 200  # seen in use
    assert await verdict(est, "cam-1", key) == (403, "already-enrolled")


async def test_whoever_was_put_out_stays_out(est: EstHarness) -> None:
    key = generate_key()
    await listed(est, ManifestRow(CAM_1, "cam", "", key_sha256(key)))
    assert await verdict(est, "cam-1", key) == (200, "")
    await revocation.revoke(est.registry, "cam-1", act=Act("test", est.clock()))
    assert await verdict(est, "cam-1", key) == (403, "device-revoked")


async def test_a_right_to_its_own_key_and_no_other(est: EstHarness) -> None:
    key = generate_key()
    await admits(est, AdmissionPath.MANIFEST, profile=ProfileRules(server_keygen=True))
    await listed(est, ManifestRow(CAM_1, "cam", "", key_sha256(key)))
    answer = await est.post("serverkeygen", csr_for("cam-1", key))
    assert (answer.status, answer.code) == (401, "no-credentials")


async def test_a_token_for_a_listed_device(est: EstHarness) -> None:
    await listed(est, ManifestRow(CAM_1, "cam", "SN1"))
    answer = await est.enroll(csr_for("cam-1"), basic(await est.token("cam-1")))
    assert answer.status == 200


async def test_a_station_gives_no_serial_that_another_device_has(est: EstHarness) -> None:
    station = await est.station("line-1", ("cam",))
    await est.device("cam-1", serial="SN1")

    async def provisioned(name: str, serial: str) -> tuple[int, str]:
        csr = build_csr(generate_key(), ((COMMON_NAME, name), (SERIAL_NUMBER, serial)), ())
        answer = await est.enroll(csr, identity=station)
        return answer.status, answer.code if answer.status != 200 else ""

    assert await provisioned("cam-9", "SN1") == (409, "serial-taken")
    assert await est.registry.device("cam-9") is None
    assert ("station line-1", "device cam-9", "serial-taken") in await rows(est)
    await revocation.revoke(est.registry, "cam-1", act=Act("test", est.clock()))
    assert await provisioned("cam-9", "SN1") == (200, "")


class TestStationQuota:
    async def test_so_many_a_day(self, est: EstHarness) -> None:
        station = await est.station("line-1", ("cam",))
        act = Act("test", est.clock())
        await inventory.set_station_quota(est.registry, "line-1", 2, act=act)
        noon = est.clock().replace(hour=12, minute=0, second=0, microsecond=0)
        est.now = noon + timedelta(days=1)
        key = generate_key()
        for number, made in enumerate((key, generate_key())):
            assert (await est.enroll(csr_for(f"new-{number}", made), identity=station)).status == 200
        answer = await est.enroll(csr_for("new-2"), identity=station)
        assert (answer.status, answer.code) == (429, "station-quota")
        assert answer.header("Retry-After") == str(12 * 3600)
        assert await est.registry.device("new-2") is None
        assert ("station line-1", "device new-2", "station-quota") in await rows(est)
        assert (await est.enroll(csr_for("new-0", key), identity=station)).status == 200  # a lost answer, again
        est.now = noon + timedelta(days=2)
        assert (await est.enroll(csr_for("new-2"), identity=station)).status == 200
        found = await est.registry.station("line-1")
        assert found is not None
        assert found.used_on(est.clock()) == 1

    async def test_more_when_it_is_allowed_more(self, est: EstHarness) -> None:
        station = await est.station("line-1", ("cam",))
        act = Act("test", est.clock())
        await inventory.set_station_quota(est.registry, "line-1", 1, act=act)
        assert (await est.enroll(csr_for("new-0"), identity=station)).status == 200
        assert (await est.enroll(csr_for("new-1"), identity=station)).status == 429
        await inventory.set_station_quota(est.registry, "line-1", 0, act=act)
        assert (await est.enroll(csr_for("new-1"), identity=station)).status == 200
