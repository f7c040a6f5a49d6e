"""A rollover of the issuing CA under a served fleet: old certificates are good, renewals are of the new CA."""

import ssl
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from device_agent.enrollment.trust_updates import apply_trust_update
from device_agent.store.root_rollover import new_roots
from fleet.domain.access import Act
from fleet.home.authorities import authority_of, forget_former, new_issuing_key
from fleet.home.ca_store import fingerprint
from fleet.services import revocation
from fleet.services.tenancy import still_in_use
from tests.servers.est_fixtures import Identity, renewal_csr, run
from tests.servers.test_est_tenants import cacerts, forged, verdict
from tests.tenant_fixtures import TenantsHarness, open_tenants, pem


@pytest.fixture
async def tenants(tmp_path: Path) -> AsyncIterator[TenantsHarness]:
    async with open_tenants(tmp_path) as tenants:
        yield tenants


async def verified(tenants: TenantsHarness, tenant: str, leaf: Identity) -> bool:
    """By openssl, with what cacerts hands out of `tenant`."""
    authority = authority_of(tenants.home, tenant)
    (tenants.folder / "root.pem").write_bytes(pem(authority.root))
    (tenants.folder / "chain.pem").write_bytes(pem(*authority.issuers))
    code, _, _ = await run(
        *("openssl", "verify", "-x509_strict", "-CAfile", tenants.folder / "root.pem"),
        *("-untrusted", tenants.folder / "chain.pem", leaf.cert_file),
    )
    return code == 0


@pytest.mark.parametrize(
    ("tenant", "model", "label", "second"),
    [("", "cam", "", "Fleet Issuing CA 2"), ("a", "a-cam", "a", "Fleet a Issuing CA 2")],
)
async def test_devices_live_through_a_rollover(
    tenants: TenantsHarness, tenant: str, model: str, label: str, second: str
) -> None:
    old = await tenants.member("d-1", model)
    known = await cacerts(tenants, label)
    new_issuing_key(tenants.home, tenant, tenants.clock())
    assert await cacerts(tenants, label) == known | {second}
    assert (await tenants.connect_mqtt(old, "d-1"))[0] == 0
    assert await tenants.whoami(old) == 200
    answer = await tenants.reenroll(renewal_csr(old), old)
    assert answer.status == 200, answer.text
    new = await tenants.member("d-2", model, label=label)
    for each in (answer.certificates[0], new.certificate):
        assert each.issuer.rfc4514_string() == f"CN={second}"
    assert await verified(tenants, tenant, old)
    assert await verified(tenants, tenant, new)
    assert (await tenants.connect_mqtt(new, "d-2"))[0] == 0
    assert await tenants.whoami(new) == 200


async def test_the_key_before_signs_nothing_that_opens_a_door(tenants: TenantsHarness) -> None:
    await tenants.member("a-1", "a-cam")
    theft = forged(tenants, "a", "a-1")
    new_issuing_key(tenants.home, "a", tenants.clock())
    assert verdict(await tenants.reenroll(renewal_csr(theft), theft)) == (401, "certificate-unknown")


async def test_a_former_ca_is_in_use_until_its_last_certificate_is_not(tenants: TenantsHarness) -> None:
    first, second = await tenants.member("a-1", "a-cam"), await tenants.member("a-2", "a-cam")
    former = authority_of(tenants.home, "a").issuing
    name = former.subject.public_bytes()
    new_issuing_key(tenants.home, "a", tenants.clock())
    await tenants.member("a-3", "a-cam")
    await tenants.member("b-1", "b-cam")
    held = await still_in_use(tenants.registry, name, tenants.clock())
    assert held is not None
    assert held.holder in ("a-1", "a-2")
    answer = await tenants.reenroll(renewal_csr(first), first)
    renewed = tenants.identity(answer.certificates[0], first.key)
    await revocation.revoke(tenants.registry, "a-2", act=Act("test", tenants.clock()))
    held = await still_in_use(tenants.registry, name, tenants.clock())
    assert held is not None
    assert held.holder == "a-1"  # until its new one has been seen in use
    assert renewed.certificate.issuer != first.certificate.issuer
    assert await still_in_use(tenants.registry, name, first.certificate.not_valid_after_utc) is None
    assert second.certificate.issuer == former.subject


async def test_certificates_of_a_ca_that_was_forgotten_open_nothing(tenants: TenantsHarness) -> None:
    alone = await tenants.member("a-1", "a-cam")
    former = authority_of(tenants.home, "a").issuing
    with_chain = tenants.identity(alone.certificate, alone.key)
    new_issuing_key(tenants.home, "a", tenants.clock())
    forget_former(tenants.home, "a", fingerprint(former), tenants.clock())
    assert len(await cacerts(tenants, "a")) == 2
    assert (await tenants.connect_mqtt(alone, "a-1"))[0] != 0
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await tenants.reenroll(renewal_csr(alone), alone)
    # It hangs on the root that devices trust: TLS lets it in when it brings the CA along, and that opens nothing.
    with_chain.cert_file.write_bytes(pem(alone.certificate, former))
    assert verdict(await tenants.reenroll(renewal_csr(alone), with_chain)) == (403, "other-tenant")
    assert (await tenants.connect_mqtt(with_chain, "a-1"))[0] > 0
    assert await tenants.whoami(with_chain) == 403


async def test_devices_are_told_which_roots_are_retired(tenants: TenantsHarness) -> None:
    """By the present issuing CA; again after the next, with all that were."""
    path = "/.well-known/est/trust-update"
    assert (await tenants.send("GET", path)).status == 204
    assert verdict(await tenants.send("POST", path)) == (405, "bad-method")
    now = tenants.clock()
    roots = [authority_of(tenants.home, "").root]
    roots += [
        new_issuing_key(tenants.home, "", now + timedelta(minutes=number), root_too=True).root for number in (1, 2)
    ]
    for gone in (0, 1):
        forget_former(tenants.home, "", fingerprint(roots[gone]), now)
        answer = await tenants.send("GET", path)
        assert (answer.status, answer.header("Content-Type")) == (200, "application/json")
        left = apply_trust_update(answer.body, roots, now + timedelta(hours=1))
        assert left == tuple(roots[gone + 1 :])
    below = await tenants.send("GET", path, identity=await tenants.member("b-1", "b-cam"))
    own_root = await tenants.send("GET", path, identity=await tenants.member("a-1", "a-cam"))
    shown = {tenant: authority_of(tenants.home, tenant).has_own_root for tenant in ("a", "b")}
    of_server = await tenants.send(
        "GET", "/.well-known/est/server-trust-update", identity=await tenants.member("b-2", "b-cam")
    )
    assert of_server.body == answer.body
    for tenant, found in (("a", own_root), ("b", below)):
        assert found.status == (204 if shown[tenant] else 200), tenant


async def test_devices_of_a_tenant_with_a_root_of_its_own_follow_the_servers_root(tenants: TenantsHarness) -> None:
    """By what cacerts gives them: the fleet's new root, which its old one has certified."""
    old, now = authority_of(tenants.home, "").root, tenants.clock()
    new = new_issuing_key(tenants.home, "", now + timedelta(minutes=1), root_too=True).root
    answer = await tenants.send("GET", "/.well-known/est/b/cacerts")
    anchors = (authority_of(tenants.home, "b").root, old)
    assert new_roots(anchors, answer.certificates, now + timedelta(hours=1)) == (new,)
