"""Models, devices, tokens and stations: what comes in, what is refused, and what the audit says."""

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from msgspec.structs import replace

from fleet.ca.authority import create_issuing, create_root
from fleet.ca.issuer import LocalIssuer
from fleet.ca.keys import generate_key
from fleet.domain.access import Act
from fleet.domain.changes import AuditEntry, Change, Event, EventKind
from fleet.domain.credential import CredentialKind, CredentialState, Station
from fleet.domain.device import Device, DeviceId, DeviceState, Model
from fleet.domain.errors import Conflict, FleetError, Invalid, NotFound, Refused
from fleet.domain.model_rules import ModelRules
from fleet.domain.mqtt_rules import MqttOverride, MqttRules
from fleet.domain.writes import Insert, SpendToken
from fleet.services import inventory, revocation
from fleet.storage.sqlite.registry import SqliteRegistry

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
CAM = Model("cam2")
PutOut = Callable[..., Awaitable[Device]]


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[SqliteRegistry]:
    opened = await SqliteRegistry.open(tmp_path / "registry.db")
    await inventory.add_model(opened, CAM, act=Act("operator", NOW))
    yield opened
    await opened.close()


@pytest.fixture(scope="module")
def issuer() -> LocalIssuer:
    root, key = create_root("test", NOW)
    return LocalIssuer(*create_issuing("test", root, key, NOW))


async def newest(registry: SqliteRegistry) -> tuple[str, str, str, str, dict[str, str]]:
    """The newest audit row: actor, action, subject, outcome, detail."""
    (row,) = await registry.audit(after=await registry.last_audit() - 1)
    assert row.entry.at == NOW
    return row.entry.actor, row.entry.action, row.entry.subject, row.entry.outcome, row.entry.detail


async def next_event(registry: SqliteRegistry, after: int) -> Event:
    return replace(await anext(registry.follow(after)), seq=0)


class TestModels:
    async def test_add_and_set(self, registry: SqliteRegistry) -> None:
        assert await newest(registry) == ("operator", "model.add", "model cam2", "ok", {})
        before = await registry.last_event()
        changed = Model("cam2", timedelta(hours=1), ("Ed25519",), ("{model}/{id}/#",), ("+/x",))
        await inventory.set_model(registry, changed, act=Act("operator", NOW))
        assert await registry.model("cam2") == replace(changed, revision=2)
        detail = {
            "before": "lifetime=7776000s; key_types=EC-P256 EC-P384; publish=devices/{id}/up/#; "
            "subscribe=devices/{id}/down/#",
            "after": "lifetime=3600s; key_types=Ed25519; publish={model}/{id}/#; subscribe=+/x",
        }
        assert await newest(registry) == ("operator", "model.set", "model cam2", "ok", detail)
        assert await next_event(registry, before) == Event(EventKind.MODEL_CHANGED, "cam2")

    async def test_only_what_a_set_changes_is_told(self, registry: SqliteRegistry) -> None:
        await inventory.set_model(registry, replace(CAM, retain=True), act=Act("operator", NOW))
        detail = {"before": "retain=no", "after": "retain=yes"}
        assert await newest(registry) == ("operator", "model.set", "model cam2", "ok", detail)
        await inventory.set_model(registry, replace(CAM, retain=True, revision=2), act=Act("operator", NOW))
        assert await newest(registry) == ("operator", "model.set", "model cam2", "ok", {})

    async def test_one_name_once(self, registry: SqliteRegistry) -> None:
        with pytest.raises(Conflict, match="exists already"):
            await inventory.add_model(registry, CAM, act=Act("operator", NOW))
        with pytest.raises(Conflict, match="no model pump"):
            await inventory.set_model(registry, Model("pump"), act=Act("operator", NOW))

    @pytest.mark.parametrize(
        ("model", "code"),
        [
            (Model(""), "bad-name"),
            (Model("a/b"), "bad-name"),
            (Model("m", timedelta(seconds=59)), "bad-lifetime"),
            (Model("m", timedelta(days=3651)), "bad-lifetime"),
            (Model("m", key_types=()), "bad-key-type"),
            (Model("m", key_types=("EC-P256", "RSA-1024")), "bad-key-type"),
            (Model("m", publish=("a/#/b",)), "bad-topic-filter"),
            (Model("m", subscribe=("",)), "bad-topic-filter"),
            (Model("m", publish=("devices/{ID}/#",)), "bad-topic-filter"),
            (Model("m", publish=("devices/{id/#",)), "bad-topic-filter"),
            (Model("m", publish=tuple(f"t/{n}" for n in range(65))), "too-many-filters"),
        ],
    )
    async def test_one_that_no_device_can_live_by(self, registry: SqliteRegistry, model: Model, code: str) -> None:
        for use_case in (inventory.add_model, inventory.set_model):
            with pytest.raises(Invalid) as caught:
                await use_case(registry, model, act=Act("operator", NOW))
            assert caught.value.code == code
        assert await registry.models() == [CAM]

    async def test_what_the_fleet_alone_publishes_is_no_grant_by_a_tag_either(self, registry: SqliteRegistry) -> None:
        gold = MqttOverride("tier=gold", publish=("devices/{id}/fleet/#",))
        reserved = Model("cam2", rules=ModelRules(mqtt=MqttRules(overrides=(gold,))))
        for use_case in (inventory.add_model, inventory.set_model):
            with pytest.raises(Invalid) as caught:
                await use_case(registry, reserved, act=Act("operator", NOW))
            assert caught.value.code == "reserved-topic"

    async def test_what_the_fleet_alone_publishes_is_no_grant(self, registry: SqliteRegistry) -> None:
        reserved = Model("cam3", publish=("devices/{id}/up/#", "devices/{id}/fleet/#"))
        with pytest.raises(Invalid) as caught:
            await inventory.add_model(registry, reserved, act=Act("operator", NOW))
        assert caught.value.code == "reserved-topic"
        with pytest.raises(Invalid) as caught:
            await inventory.set_model(registry, replace(reserved, name="cam2"), act=Act("operator", NOW))
        assert caught.value.code == "reserved-topic"
        await registry.commit(Change(AuditEntry(NOW, "earlier", "model.add", "model cam3", "ok"), (Insert(reserved),)))
        changed = replace(reserved, retain=True, revision=1)  # what it has had before is no obstacle
        await inventory.set_model(registry, changed, act=Act("operator", NOW))

    async def test_no_filters_is_a_silent_device(self, registry: SqliteRegistry) -> None:
        await inventory.add_model(registry, Model("mute", publish=(), subscribe=()), act=Act("operator", NOW))
        mute = await registry.model("mute")
        assert mute is not None
        assert (mute.publish, mute.subscribe) == ((), ())


class TestDevices:
    async def test_add(self, registry: SqliteRegistry) -> None:
        added = await inventory.add_device(
            registry, "cam-7", "cam2", hardware_serial="SN-1/2", act=Act("operator", NOW)
        )
        assert added == Device(DeviceId("cam-7"), "cam2", DeviceState.REGISTERED, NOW, "SN-1/2")
        assert await registry.device("cam-7") == added
        assert await newest(registry) == ("operator", "device.add", "device cam-7", "ok", {"model": "cam2"})
        assert await next_event(registry, 0) == Event(EventKind.DEVICE_STATE, "cam-7", "registered")

    @pytest.mark.parametrize(
        ("id_", "model", "serial", "code"),
        [
            ("a/b", "cam2", "", "bad-device-id"),
            ("cam-7", "pump", "", "no-such-model"),
            ("cam-7", "cam2", "x" * 65, "bad-hardware-serial"),
            ("cam-7", "cam2", "a\nb", "bad-hardware-serial"),
            ("cam-7", "cam2", "a_b", "bad-hardware-serial"),
            ("cam-7", "cam2", "  ", "bad-hardware-serial"),
            ("cam-7", "cam2", "é", "bad-hardware-serial"),
        ],
    )
    async def test_refused(self, registry: SqliteRegistry, id_: str, model: str, serial: str, code: str) -> None:
        with pytest.raises(FleetError) as caught:
            await inventory.add_device(registry, id_, model, hardware_serial=serial, act=Act("operator", NOW))
        assert caught.value.code == code
        assert await registry.devices() == []

    @pytest.mark.parametrize("put_out", [revocation.suspend, revocation.revoke, revocation.retire])
    async def test_registering_anew_brings_nobody_back(self, registry: SqliteRegistry, put_out: PutOut) -> None:
        await inventory.add_device(registry, "cam-7", "cam2", act=Act("operator", NOW))
        out = await put_out(registry, "cam-7", act=Act("operator", NOW))
        with pytest.raises(Conflict, match="exists already"):
            await inventory.add_device(registry, "cam-7", "cam2", act=Act("operator", NOW))
        assert await registry.device("cam-7") == out


class TestTokens:
    async def test_for_a_device(self, registry: SqliteRegistry) -> None:
        await inventory.add_device(registry, "cam-7", "cam2", act=Act("operator", NOW))
        token, text = await inventory.create_token(registry, device="cam-7", act=Act("operator", NOW))
        id_, _, secret = text.partition(".")
        assert id_ == token.id
        assert len(secret) >= 43  # 32 random bytes
        assert token.secret_sha256 == hashlib.sha256(secret.encode()).digest()
        assert (token.device_id, token.model, token.uses, token.uses_max) == ("cam-7", None, 0, 1)
        assert token.expires_at - token.created_at == timedelta(hours=1)
        assert await registry.token(id_) == token
        assert await newest(registry) == ("operator", "token.create", f"token {id_}", "ok", {"scope": "device cam-7"})

    async def test_for_a_model(self, registry: SqliteRegistry) -> None:
        token, _ = await inventory.create_token(
            registry, model="cam2", terms=inventory.TokenTerms(500, timedelta(days=7)), act=Act("operator", NOW)
        )
        assert (token.device_id, token.model, token.uses_max) == (None, "cam2", 500)
        assert token.expires_at == NOW + timedelta(days=7)

    async def test_no_two_are_alike_and_no_secret_is_kept(self, registry: SqliteRegistry, tmp_path: Path) -> None:
        texts = [(await inventory.create_token(registry, model="cam2", act=Act("o", NOW)))[1] for _ in range(50)]
        assert len({text.partition(".")[0] for text in texts}) == 50
        await registry.close()
        stored = (tmp_path / "registry.db").read_bytes()
        for text in texts:
            assert text.partition(".")[0].encode() in stored
            assert text.partition(".")[2].encode() not in stored

    @pytest.mark.parametrize(
        ("given", "code"),
        [
            ({}, "bad-token-scope"),
            ({"device": "cam-7", "model": "cam2"}, "bad-token-scope"),
            ({"model": "cam2", "terms": inventory.TokenTerms(0)}, "bad-token-uses"),
            ({"model": "cam2", "terms": inventory.TokenTerms(100_001)}, "bad-token-uses"),
            ({"model": "cam2", "terms": inventory.TokenTerms(ttl=timedelta(0))}, "bad-token-ttl"),
            ({"model": "cam2", "terms": inventory.TokenTerms(ttl=timedelta(days=91))}, "bad-token-ttl"),
            ({"model": "pump"}, "no-such-model"),
            ({"device": "cam-8"}, "no-such-device"),
            ({"device": "a/b"}, "bad-device-id"),
        ],
    )
    async def test_refused(self, registry: SqliteRegistry, given: dict[str, object], code: str) -> None:
        with pytest.raises(FleetError) as caught:
            await inventory.create_token(registry, act=Act("o", NOW), **given)  # type: ignore[arg-type]
        assert caught.value.code == code
        assert await registry.tokens() == []

    @pytest.mark.parametrize("put_out", [revocation.revoke, revocation.retire])
    async def test_none_for_a_device_that_is_out_for_good(self, registry: SqliteRegistry, put_out: PutOut) -> None:
        await inventory.add_device(registry, "cam-7", "cam2", act=Act("operator", NOW))
        await put_out(registry, "cam-7", act=Act("operator", NOW))
        with pytest.raises(Refused, match="permanently"):
            await inventory.create_token(registry, device="cam-7", act=Act("operator", NOW))

    @pytest.mark.parametrize(
        ("spent", "later", "state"),
        [
            (0, timedelta(0), "open, 0 of 2 uses"),
            (1, timedelta(0), "open, 1 of 2 uses"),
            (2, timedelta(0), "used up"),
            (0, timedelta(hours=1), "expired"),
            (2, timedelta(hours=1), "expired"),
        ],
    )
    async def test_what_a_token_was_when_it_was_revoked(
        self, registry: SqliteRegistry, spent: int, later: timedelta, state: str
    ) -> None:
        token, _ = await inventory.create_token(
            registry, model="cam2", terms=inventory.TokenTerms(2), act=Act("operator", NOW)
        )
        for _ in range(spent):
            await registry.commit(Change(AuditEntry(NOW, "test", "spend", "", "ok"), (SpendToken(token.id),)))
        await inventory.revoke_token(registry, token.id, act=Act("operator", NOW + later))
        (row,) = await registry.audit(after=await registry.last_audit() - 1)
        assert row.entry.detail == {"before": f"state={state}", "after": "state=revoked"}

    async def test_revoke(self, registry: SqliteRegistry) -> None:
        token, _ = await inventory.create_token(registry, model="cam2", act=Act("operator", NOW))
        await inventory.revoke_token(registry, token.id, act=Act("operator", NOW))
        assert await registry.token(token.id) == replace(token, revoked_at=NOW)
        detail = {"before": "state=open, 0 of 1 uses", "after": "state=revoked"}
        assert await newest(registry) == ("operator", "token.revoke", f"token {token.id}", "ok", detail)
        with pytest.raises(Conflict):
            await inventory.revoke_token(registry, token.id, act=Act("operator", NOW))
        with pytest.raises(NotFound):
            await inventory.revoke_token(registry, "x", act=Act("operator", NOW))


def spki() -> bytes:
    return generate_key().public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


class TestStations:
    async def test_enroll(self, registry: SqliteRegistry, issuer: LocalIssuer) -> None:
        key = spki()
        credential = await inventory.enroll_station(
            registry,
            issuer,
            inventory.NewStation("st1", ("cam2", "cam2"), key, timedelta(days=10)),
            act=Act("operator", NOW),
        )
        facts = await registry.holder_facts(credential.fingerprint)
        assert facts is not None
        assert facts.station is not None
        assert facts.station.models == ("cam2",)
        assert (credential.kind, credential.state) == (CredentialKind.STATION, CredentialState.ISSUED)
        assert credential.key_sha256 == hashlib.sha256(key).digest()
        assert x509.load_der_x509_certificate(credential.der).not_valid_after_utc == NOW + timedelta(days=10)
        detail = {"models": "cam2", "serial": credential.serial}
        assert await newest(registry) == ("operator", "station.add", "station st1", "ok", detail)

    @pytest.mark.parametrize(
        ("name", "models", "days", "code"),
        [
            ("st1", ("cam2",), 10, "station-exists"),
            ("a/b", ("cam2",), 10, "bad-name"),
            ("st2", (), 10, "bad-station-models"),
            ("st2", ("cam2",) * 65, 10, "bad-station-models"),
            ("st2", ("cam2", "pump"), 10, "no-such-model"),
            ("st2", ("cam2",), 0, "bad-lifetime"),
            ("st2", ("cam2",), 4000, "bad-lifetime"),
        ],
    )
    async def test_refused(
        self, registry: SqliteRegistry, issuer: LocalIssuer, name: str, models: tuple[str, ...], days: int, code: str
    ) -> None:
        station = Insert(Station("st1", ("cam2",), NOW))
        await registry.commit(Change(AuditEntry(NOW, "operator", "station.add", "station st1", "ok"), (station,)))
        with pytest.raises(FleetError) as caught:
            await inventory.enroll_station(
                registry,
                issuer,
                inventory.NewStation(name, models, spki(), timedelta(days=days)),
                act=Act("operator", NOW),
            )
        assert caught.value.code == code
        assert len(await registry.stations()) == 1
        assert await registry.credentials("st1") == []
