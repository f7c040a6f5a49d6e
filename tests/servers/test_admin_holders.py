"""Stations, operators and CAs over the API: certificates for keys that were made elsewhere."""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding

from fleet.ca.keys import generate_key
from fleet.domain.access import Role
from fleet.wire.csr import build_csr
from tests.servers.admin_fixtures import AdminHarness, Client, csr_text, open_admin


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[AdminHarness]:
    async with open_admin(tmp_path) as api:
        yield api


@pytest.fixture
async def admin(api: AdminHarness) -> Client:
    return await api.operator("bob")


def chain_of(told: dict[str, Any]) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(told["chain"].encode())


def station(name: str = "line-9", **more: Any) -> dict[str, Any]:
    return {"name": name, "models": ["cam"], "csr": csr_text(name), **more}


def operator(name: str = "carol", role: str = "viewer", **more: Any) -> dict[str, Any]:
    return {"name": name, "role": role, "csr": csr_text(name), **more}


async def test_a_station_gets_a_certificate_for_its_own_key(api: AdminHarness, admin: Client) -> None:
    key = generate_key()
    status, told = await admin.ask("POST", "/v1/stations", station(csr=csr_text("line-9", key), lifetime_seconds=3600))
    assert (status, told["models"], told["certificate"]) == (201, ["cam"], "issued")
    leaf, issuer = chain_of(told)
    assert leaf.public_key() == key.public_key()
    assert issuer == api.est.issuing[0]
    assert told["root"].encode() == api.est.root[0].public_bytes(Encoding.PEM)
    life = leaf.not_valid_after_utc - api.est.clock()
    assert timedelta(minutes=59) < life <= timedelta(hours=1)
    client = api.client(api.est.identity(leaf, key))
    assert (await client.get("/v1/whoami"))["holder"] == "line-9"
    _, revoked = await admin.ask("POST", "/v1/stations/line-9/revoke", {"reason": "stolen"})
    assert (revoked["certificate"], revoked["serial"]) == ("revoked", told["serial"])
    assert (await client.ask("GET", "/v1/whoami"))[0] == 403
    rows = [r.entry for r in await api.est.registry.audit() if r.entry.subject == "station line-9"]
    assert [(e.actor, e.address, e.action) for e in rows] == [
        ("operator bob", "127.0.0.1", "station.add"),
        ("operator bob", "127.0.0.1", "station.revoke"),
    ]
    assert rows[0].detail == {"models": "cam", "serial": told["serial"]}
    assert rows[1].detail == {"reason": "stolen"}


async def test_an_operator_gets_a_certificate_for_its_own_key(api: AdminHarness, admin: Client) -> None:
    key = generate_key()
    body = operator(role="operator", models=["cam"], csr=csr_text("carol", key))
    status, told = await admin.ask("POST", "/v1/operators", body)
    assert (status, told["role"], told["models"]) == (201, "operator", ["cam"])
    leaf, issuer = chain_of(told)
    assert issuer == api.est.operators_issuer.certificate
    carol = api.client(api.est.identity(leaf, key))
    assert {d["id"] for d in (await carol.get("/v1/devices"))["items"]} == {"cam-1", "cam-2"}
    assert {**await admin.get("/v1/operators/carol"), "chain": 0, "root": 0} == {**told, "chain": 0, "root": 0}
    assert (await admin.ask("POST", "/v1/operators/carol/revoke"))[1]["certificate"] == "revoked"
    dumped = {"crl_reason": "keyCompromise"}
    assert (await admin.ask("POST", "/v1/operators/carol/revoke", dumped))[1]["certificate"] == "revoked"
    assert (await admin.ask("POST", "/v1/operators/carol/revoke", dumped))[1]["code"] == "operator-revoked"
    assert (await carol.ask("GET", "/v1/devices"))[0] == 403
    assert (await admin.ask("POST", "/v1/operators/carol/revoke"))[1]["code"] == "operator-revoked"


async def test_the_same_request_sent_twice_is_answered_alike(api: AdminHarness, admin: Client) -> None:
    for path, body in (("/v1/stations", station()), ("/v1/operators", operator())):
        key = {"Idempotency-Key": path}
        first = await admin.ask("POST", path, body, key)
        assert first[0] == 201
        assert await admin.ask("POST", path, body, key) == first
        assert (await admin.ask("POST", path, body))[0] == 409
    for path in ("/v1/stations/line-9/revoke", "/v1/operators/carol/revoke"):
        first = await admin.ask("POST", path, None, {"Idempotency-Key": path})
        assert await admin.ask("POST", path, None, {"Idempotency-Key": path}) == first


async def test_what_is_wrong_brings_nobody_in(api: AdminHarness, admin: Client) -> None:
    used = csr_text("line-9", api.device.key)
    rsa_key = rsa.generate_private_key(65537, 1024)  # noqa: S505  what is to be refused
    weak = x509.load_der_x509_csr(build_csr(rsa_key, (("2.5.4.3", "line-9"),), ()))
    cut = csr_text("line-9")
    forged = x509.load_pem_x509_csr(cut.encode()).public_bytes(Encoding.DER)
    forged = forged[:-1] + bytes([forged[-1] ^ 1])
    broken = "-----BEGIN CERTIFICATE REQUEST-----\n" + _base64(forged) + "\n-----END CERTIFICATE REQUEST-----\n"
    wrong: tuple[tuple[str, dict[str, Any], set[int]], ...] = (
        ("/v1/stations", station(csr="nonsense"), {400}),
        ("/v1/stations", station(csr=cut[:200]), {400}),
        ("/v1/stations", station(csr=broken), {400}),
        ("/v1/stations", station(csr=weak.public_bytes(Encoding.PEM).decode()), {400}),
        ("/v1/stations", station(csr=csr_text("line-8")), {400}),
        ("/v1/stations", station(csr=used), {409}),
        ("/v1/stations", station(models=[]), {400}),
        ("/v1/stations", station(models=["valve"]), {404}),
        ("/v1/stations", station(lifetime_seconds=1), {400}),
        ("/v1/stations", station("line-1"), {409}),
        ("/v1/stations", {"name": "line-9", "models": ["cam"]}, {400}),
        ("/v1/operators", operator(role="root"), {400}),
        ("/v1/operators", operator(role="factory"), {400}),
        ("/v1/operators", operator(models=["valve"]), {404}),
        ("/v1/operators", operator("bob"), {409}),
        ("/v1/operators", operator(csr=csr_text("bob")), {400}),
    )
    for path, body, expected in wrong:
        status, told = await admin.ask("POST", path, body)
        assert status in expected, (body, told)
    assert {s.name for s in await api.est.registry.stations()} == {"line-1", "line-2"}
    assert {o.name for o in await api.est.registry.operators()} == {"bob"}


def _base64(data: bytes) -> str:
    import base64

    return base64.b64encode(data).decode()


async def test_of_ones_own_models_alone(api: AdminHarness, admin: Client) -> None:
    held = await api.operator("held", Role.ADMIN, ("cam",))
    assert (await held.ask("POST", "/v1/stations", station(models=["cam", "pump"])))[1]["code"] == "held-to-models"
    assert (await held.ask("POST", "/v1/stations", station()))[0] == 201
    assert (await held.ask("POST", "/v1/stations/line-2/revoke"))[1]["code"] == "no-such-station"
    assert (await held.ask("POST", "/v1/stations/line-1/revoke"))[0] == 200
    assert (await held.ask("POST", "/v1/operators", operator(models=["cam"])))[1]["code"] == "held-to-models"


async def test_the_cas_are_there_for_every_operator(api: AdminHarness) -> None:
    factory = await api.operator("factory", Role.FACTORY, ("cam",))
    items = (await factory.get("/v1/authorities"))["items"]
    assert [each["role"] for each in items] == ["root", "issuing"]
    assert x509.load_pem_x509_certificate(items[0]["pem"].encode()) == api.est.root[0]
    assert (await api.client(api.device).ask("GET", "/v1/authorities"))[0] == 403
