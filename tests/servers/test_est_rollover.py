"""A rollover of the issuing CA under a served fleet: old certificates are good, renewals are of the new CA."""

import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fleet.domain.access import Act
from fleet.home.ca_store import fingerprint
from fleet.home.tenants import authority_of, forget_former, new_issuing_key
from fleet.services import revocation
from fleet.services.tenancy import still_in_use
from tests.servers.est_house import Identity, renewal_csr, run
from tests.servers.test_est_tenants import cacerts, forged, verdict
from tests.tenant_house import Tenants, open_tenants, pem


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[Tenants]:
    async with open_tenants(tmp_path) as house:
        yield house


async def verified(house: Tenants, tenant: str, leaf: Identity) -> bool:
    """By openssl, with what cacerts hands out of `tenant`."""
    authority = authority_of(house.home, tenant)
    (house.folder / "root.pem").write_bytes(pem(authority.root))
    (house.folder / "chain.pem").write_bytes(pem(*authority.issuers))
    code, _, _ = await run(
        *("openssl", "verify", "-x509_strict", "-CAfile", house.folder / "root.pem"),
        *("-untrusted", house.folder / "chain.pem", leaf.cert_file),
    )
    return code == 0


@pytest.mark.parametrize(
    ("tenant", "model", "label", "second"),
    [("", "cam", "", "Fleet Issuing CA 2"), ("a", "a-cam", "a", "Fleet a Issuing CA 2")],
)
async def test_devices_live_through_a_rollover(
    house: Tenants, tenant: str, model: str, label: str, second: str
) -> None:
    old = await house.member("d-1", model)
    known = await cacerts(house, label)
    new_issuing_key(house.home, tenant, house.clock())
    assert await cacerts(house, label) == known | {second}
    assert (await house.connect_mqtt(old, "d-1"))[0] == 0
    assert await house.whoami(old) == 200
    answer = await house.reenroll(renewal_csr(old), old)
    assert answer.status == 200, answer.text
    new = await house.member("d-2", model, label=label)
    for each in (answer.certificates[0], new.certificate):
        assert each.issuer.rfc4514_string() == f"CN={second}"
    assert await verified(house, tenant, old)
    assert await verified(house, tenant, new)
    assert (await house.connect_mqtt(new, "d-2"))[0] == 0
    assert await house.whoami(new) == 200


async def test_the_key_before_signs_nothing_that_opens_a_door(house: Tenants) -> None:
    await house.member("a-1", "a-cam")
    theft = forged(house, "a", "a-1")
    new_issuing_key(house.home, "a", house.clock())
    assert verdict(await house.reenroll(renewal_csr(theft), theft)) == (401, "certificate-unknown")


async def test_a_former_ca_is_in_use_until_its_last_certificate_is_not(house: Tenants) -> None:
    first, second = await house.member("a-1", "a-cam"), await house.member("a-2", "a-cam")
    former = authority_of(house.home, "a").issuing
    name = former.subject.public_bytes()
    new_issuing_key(house.home, "a", house.clock())
    await house.member("a-3", "a-cam")
    await house.member("b-1", "b-cam")
    held = await still_in_use(house.registry, name, house.clock())
    assert held is not None
    assert held.holder in ("a-1", "a-2")
    answer = await house.reenroll(renewal_csr(first), first)
    renewed = house.identity(answer.certificates[0], first.key)
    await revocation.revoke(house.registry, "a-2", act=Act("test", house.clock()))
    held = await still_in_use(house.registry, name, house.clock())
    assert held is not None
    assert held.holder == "a-1"  # until its new one has been seen in use
    assert renewed.certificate.issuer != first.certificate.issuer
    assert await still_in_use(house.registry, name, first.certificate.not_valid_after_utc) is None
    assert second.certificate.issuer == former.subject


async def test_certificates_of_a_ca_that_was_forgotten_open_nothing(house: Tenants) -> None:
    alone = await house.member("a-1", "a-cam")
    former = authority_of(house.home, "a").issuing
    with_chain = house.identity(alone.certificate, alone.key)
    new_issuing_key(house.home, "a", house.clock())
    forget_former(house.home, "a", fingerprint(former))
    assert len(await cacerts(house, "a")) == 2
    assert (await house.connect_mqtt(alone, "a-1"))[0] != 0
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await house.reenroll(renewal_csr(alone), alone)
    # It hangs on the root that devices trust: TLS lets it in when it brings the CA along, and that opens nothing.
    with_chain.cert_file.write_bytes(pem(alone.certificate, former))
    assert verdict(await house.reenroll(renewal_csr(alone), with_chain)) == (403, "other-tenant")
    assert (await house.connect_mqtt(with_chain, "a-1"))[0] > 0
    assert await house.whoami(with_chain) == 403
