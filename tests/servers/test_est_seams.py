"""Where two parts of the EST door meet: what each does alone, it does beside the others."""

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fleet.ca.keys import generate_key
from fleet.domain.access import Act
from fleet.domain.device import DeviceId, Model
from fleet.domain.manifest import ManifestRow
from fleet.domain.model_rules import rules_of
from fleet.services import inventory
from fleet.services.importing import Importer, Numbered
from tests.servers.est_house import House, Identity, Key, basic, csr_for, open_house, renewal_csr
from tests.servers.test_est_keygen import pair_of

EST = "/.well-known/est"


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(tmp_path) as house:
        yield house


async def model(house: House, name: str, **rules: Any) -> None:
    await inventory.add_model(house.registry, Model(name, rules=rules_of(rules)), act=Act("test", house.clock()))


async def listed(house: House, name: str, model: str) -> Key:
    """The key by which the manifest lets a device in."""
    key = generate_key()
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    row = ManifestRow(DeviceId(name), model, "", hashlib.sha256(spki).digest())
    assert await Importer(house.registry, "test", house.clock, "bulk").take([Numbered(2, row)]) == []
    return key


async def rows(house: House) -> list[tuple[str, str]]:
    """(actor, outcome) of each row that is no operator's."""
    entries = [row.entry for row in await house.registry.audit(limit=5000)]
    return [(e.actor, e.outcome) for e in entries if e.actor != "test"]


async def with_a_key_made_here(house: House, name: str, model: str) -> Identity:
    await house.device(name, model)
    answer = await house.post("serverkeygen", csr_for(name), basic(await house.token(name)))
    key, certificate = pair_of(answer)
    return house.identity(certificate, key)


# serverkeygen, whose CSR's own key says nothing (RFC 7030, 4.4.1), and the rules about keys


async def test_a_model_that_wants_new_keys_takes_those_that_are_made_here(house: House) -> None:
    """A device that has no other key signs with the one it has."""
    await model(house, "probe", profile={"server_keygen": True}, renewal={"key": "new"})
    device = await with_a_key_made_here(house, "p-1", "probe")
    answer = await house.post("serverkeygen", renewal_csr(device, device.key), identity=device)
    key, certificate = pair_of(answer)
    assert certificate.public_key() == key.public_key() != device.key.public_key()
    assert (await house.reenroll(renewal_csr(device, device.key), device)).code == "key-not-new"


async def test_a_model_that_keeps_its_keys_has_none_made(house: House) -> None:
    await model(house, "probe", profile={"server_keygen": True}, renewal={"key": "same"})
    device = await with_a_key_made_here(house, "p-1", "probe")
    answer = await house.post("serverkeygen", renewal_csr(device, device.key), identity=device)
    assert (answer.status, answer.code) == (403, "key-not-same")


async def test_a_station_signs_for_a_device_that_has_no_key(house: House) -> None:
    await model(house, "probe", profile={"server_keygen": True})
    station = await house.station(models=("probe",))
    answer = await house.post("serverkeygen", csr_for("p-1", station.key), identity=station)
    key, certificate = pair_of(answer)
    assert certificate.public_key() == key.public_key() != station.key.public_key()
    assert (await house.enroll(csr_for("p-2", station.key), identity=station)).code == "key-in-use"
