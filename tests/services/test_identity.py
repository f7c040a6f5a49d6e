"""Identification by a presented certificate: which holder it is, and every reason for which it is refused."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from msgspec import structs
from msgspec.structs import replace

from fleet.domain.access import Operator, Role
from fleet.domain.changes import Change, Event, EventKind
from fleet.domain.claim import Claim
from fleet.domain.credential import Credential, CredentialKind, CredentialState, Station
from fleet.domain.device import Device, DeviceId, DeviceState, Model
from fleet.domain.distrust import Distrust, rule_text
from fleet.domain.errors import FleetError, Refused, Unauthenticated
from fleet.domain.model_rules import ModelRules, RenewalRules
from fleet.domain.peer import Peer
from fleet.domain.ports import HolderFacts
from fleet.domain.revoked_cache import RevokedCache
from fleet.domain.writes import QuarantineClaim
from fleet.services.identity import NOBODY, audit_actor_of, identify, identify_operator

identify_for_renewal = partial(identify, renews=True, in_grace=True)

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
SECOND = timedelta(seconds=1)
DAY = timedelta(days=1)
CREDENTIAL = Credential(
    fingerprint=b"f" * 32,
    serial="0a",
    kind=CredentialKind.DEVICE,
    holder="cam-1",
    key_sha256=b"k" * 32,
    not_before=NOW - DAY,
    not_after=NOW + DAY,
    state=CredentialState.ACTIVE,
    issued_at=NOW - DAY,
    der=b"der",
)
DEVICE = Device(DeviceId("cam-1"), "cam", DeviceState.ACTIVE, NOW - DAY)
MODEL = Model("cam")
OF_DEVICE = HolderFacts(CREDENTIAL, DEVICE, MODEL, None)
OF_STATION = HolderFacts(
    structs.replace(CREDENTIAL, kind=CredentialKind.STATION, holder="line-1"),
    None,
    None,
    Station("line-1", ("cam",), NOW),
)
OF_CLAIM = HolderFacts(
    structs.replace(CREDENTIAL, kind=CredentialKind.CLAIM, holder="batch"),
    None,
    None,
    None,
    claim=Claim("batch", "cam", 9, 0, NOW - DAY, NOW + DAY),
)
OF_OPERATOR = HolderFacts(
    structs.replace(CREDENTIAL, kind=CredentialKind.OPERATOR, holder="bob"),
    None,
    None,
    None,
    operator=Operator("bob", Role.ADMIN, NOW),
)
PEER = Peer("192.0.2.7", b"der", (b"der",), CREDENTIAL.fingerprint)


@dataclass
class OneHolder:
    """As much of a registry as identification reads and writes."""

    facts: HolderFacts | None
    changes: list[Change] = field(default_factory=list)
    revoked: RevokedCache = field(default_factory=RevokedCache)

    async def holder_facts(self, fingerprint: bytes) -> HolderFacts | None:
        assert fingerprint == CREDENTIAL.fingerprint
        return self.facts

    async def commit(self, change: Change) -> None:
        self.changes.append(change)


Identify = Callable[..., Awaitable[object]]


async def refused(how: Identify, facts: HolderFacts | None, peer: Peer = PEER, at: datetime = NOW) -> FleetError | None:
    try:
        await how(OneHolder(facts), peer, at)
    except FleetError as error:
        return error
    return None


async def code(how: Identify, facts: HolderFacts | None, peer: Peer = PEER, at: datetime = NOW) -> str:
    """ "" when it is identified."""
    error = await refused(how, facts, peer, at)
    return error.code if error is not None else ""


@pytest.mark.parametrize("how", [identify, identify_for_renewal])
@pytest.mark.parametrize("state", DeviceState)
async def test_a_device_is_identified_only_in_service(how: Identify, state: DeviceState) -> None:
    error = await refused(how, structs.replace(OF_DEVICE, device=structs.replace(DEVICE, state=state)))
    if state in (DeviceState.REGISTERED, DeviceState.ACTIVE):
        assert error is None
    else:
        assert isinstance(error, Refused)
        assert error.code == f"device-{state}"


@pytest.mark.parametrize("how", [identify, identify_for_renewal])
@pytest.mark.parametrize("state", [DeviceState.REVOKED, DeviceState.RETIRED])
async def test_a_device_that_has_ended_is_refused_as_that_and_not_for_its_certificate(
    how: Identify, state: DeviceState
) -> None:
    """Its certificates end with it: that one is revoked would let it ask for a token, which it can never get."""
    for ended in (CredentialState.REVOKED, CredentialState.SUPERSEDED):
        certificate = structs.replace(CREDENTIAL, state=ended)
        facts = structs.replace(OF_DEVICE, device=structs.replace(DEVICE, state=state), credential=certificate)
        assert await code(how, facts) == f"device-{state}"
    assert await code(how, facts, at=CREDENTIAL.not_after) == f"device-{state}"


@pytest.mark.parametrize("how", [identify, identify_for_renewal])
@pytest.mark.parametrize("facts", [OF_DEVICE, OF_STATION])
@pytest.mark.parametrize("state", CredentialState)
async def test_a_certificate_must_be_usable(how: Identify, facts: HolderFacts, state: CredentialState) -> None:
    wanted = "" if state in (CredentialState.ISSUED, CredentialState.ACTIVE) else f"certificate-{state}"
    assert await code(how, structs.replace(facts, credential=structs.replace(facts.credential, state=state))) == wanted


@pytest.mark.parametrize("how", [identify, identify_for_renewal])
@pytest.mark.parametrize("facts", [OF_DEVICE, OF_STATION])
async def test_a_certificate_is_valid_from_its_first_second_up_to_its_last(how: Identify, facts: HolderFacts) -> None:
    own = facts.credential
    for at, wanted in (
        (own.not_before - SECOND, "certificate-expired"),
        (own.not_before, ""),
        (own.not_after - SECOND, ""),
        (own.not_after, "certificate-expired"),
    ):
        assert await code(how, facts, at=at) == wanted


async def test_a_grace_period_is_for_renewals_alone() -> None:
    late = structs.replace(OF_DEVICE, model=Model("cam", rules=ModelRules(renewal=RenewalRules(grace=3 * DAY))))
    for at, renewal, otherwise in (
        (CREDENTIAL.not_after + 3 * DAY - SECOND, "", "certificate-expired"),
        (CREDENTIAL.not_after + 3 * DAY, "certificate-expired", "certificate-expired"),
        (CREDENTIAL.not_before - SECOND, "certificate-expired", "certificate-expired"),
    ):
        assert await code(identify_for_renewal, late, at=at) == renewal
        assert await code(identify, late, at=at) == otherwise
    suspended = structs.replace(late, device=structs.replace(DEVICE, state=DeviceState.SUSPENDED))
    assert await code(identify_for_renewal, suspended, at=CREDENTIAL.not_after) == "device-suspended"


@pytest.mark.parametrize("how", [identify, identify_for_renewal])
async def test_a_certificate_must_be_signed_for_the_tenant_of_its_holder(how: Identify) -> None:
    of_tenant = structs.replace(OF_DEVICE, model=Model("cam", rules=ModelRules(tenant="acme", former_tenants=("old",))))
    for tenant, own, tenants in (("", "", "other-tenant"), ("acme", "other-tenant", ""), ("old", "other-tenant", "")):
        peer = replace(PEER, tenant=tenant)
        assert await code(how, OF_DEVICE, peer) == own
        assert await code(how, OF_STATION, peer) == own
        assert await code(how, of_tenant, peer) == tenants
    assert await code(how, OF_DEVICE, replace(PEER, tenant=None)) == "other-tenant"


@pytest.mark.parametrize("how", [identify, identify_for_renewal, identify_operator])
async def test_an_unknown_certificate_and_none_at_all_identify_nobody(how: Identify) -> None:
    for facts, peer, wanted in ((None, PEER, "certificate-unknown"), (OF_DEVICE, Peer("192.0.2.7"), "no-certificate")):
        error = await refused(how, facts, peer)
        assert isinstance(error, Unauthenticated)
        assert error.code == wanted


async def test_each_holder_is_identified_where_it_belongs() -> None:
    for facts in (OF_DEVICE, OF_STATION):
        assert await identify(OneHolder(facts), PEER, NOW) == facts  # type: ignore[arg-type]
        assert await identify_for_renewal(OneHolder(facts), PEER, NOW) == facts  # type: ignore[arg-type]
        assert await code(identify_operator, facts) == "certificate-unknown"
    operator, credential = await identify_operator(OneHolder(OF_OPERATOR), PEER, NOW)  # type: ignore[arg-type]
    assert (operator, credential) == (OF_OPERATOR.operator, OF_OPERATOR.credential)
    for how in (identify, identify_for_renewal):
        assert await code(how, OF_OPERATOR) == "certificate-unknown"


async def test_an_operators_certificate_must_be_usable() -> None:
    own = OF_OPERATOR.credential
    assert await code(identify_operator, OF_OPERATOR, at=own.not_after) == "certificate-expired"
    assert await code(identify_operator, OF_OPERATOR, at=own.not_before - SECOND) == "certificate-expired"
    for state in (CredentialState.REVOKED, CredentialState.SUPERSEDED):
        facts = structs.replace(OF_OPERATOR, credential=structs.replace(own, state=state))
        assert await code(identify_operator, facts) == f"certificate-{state}"


async def test_a_claim_is_identified_only_where_it_enrolls_and_quarantined_elsewhere() -> None:
    registry = OneHolder(OF_CLAIM)
    assert await identify(registry, PEER, NOW, opens_to_claims=True) == OF_CLAIM  # type: ignore[arg-type]
    assert registry.changes == []
    expired = structs.replace(OF_CLAIM, credential=structs.replace(OF_CLAIM.credential, not_after=NOW))
    with pytest.raises(Refused, match="not valid at this time"):
        await identify(OneHolder(expired), PEER, NOW, opens_to_claims=True)  # type: ignore[arg-type]
    for how, wanted in (
        (identify, "claim-only-enrolls"),
        (identify_for_renewal, "claim-only-enrolls"),
        (identify_operator, "certificate-unknown"),
    ):
        registry = OneHolder(OF_CLAIM)
        with pytest.raises(FleetError) as caught:
            await how(registry, PEER, NOW)  # type: ignore[arg-type]
        assert caught.value.code == wanted
        (change,) = registry.changes
        assert [type(write) for write in change.writes] == [QuarantineClaim]
        assert change.audit.detail["refusal"] == "claim-only-enrolls"
        assert change.audit.address == PEER.address


async def test_the_audit_names_the_holder_of_a_certificate_good_or_not() -> None:
    revoked = structs.replace(OF_DEVICE, credential=structs.replace(CREDENTIAL, state=CredentialState.REVOKED))
    assert await audit_actor_of(OneHolder(revoked), PEER) == ("device cam-1", {"serial": "0a"})  # type: ignore[arg-type]
    assert await audit_actor_of(OneHolder(None), PEER) == (NOBODY, {})  # type: ignore[arg-type]
    assert await audit_actor_of(OneHolder(OF_DEVICE), Peer("192.0.2.7")) == (NOBODY, {})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("facts", "how"),
    [
        (OF_DEVICE, identify),
        (OF_DEVICE, identify_for_renewal),
        (OF_STATION, identify),
        (OF_STATION, identify_for_renewal),
        (OF_OPERATOR, identify_operator),
    ],
)
async def test_what_was_seen_revoked_is_refused_whatever_the_registry_says(facts: HolderFacts, how: Identify) -> None:
    registry = OneHolder(facts)
    await how(registry, PEER, NOW)
    ended = Event(EventKind.CREDENTIAL_ENDED, facts.credential.holder, CREDENTIAL.fingerprint.hex())
    registry.revoked.on_event(ended)
    with pytest.raises(Refused) as caught:
        await how(registry, PEER, NOW)
    assert caught.value.code == "certificate-revoked"
    if facts.device is not None:
        registry.revoked.on_event(Event(EventKind.DEVICE_STATE, "cam-1", "revoked"))
        with pytest.raises(Refused) as caught:
            await how(registry, PEER, NOW)
        assert caught.value.code == "device-revoked"


@pytest.mark.parametrize(
    ("may_renew", "how", "is_refused"),
    [(True, identify, True), (True, identify_for_renewal, False), (False, identify_for_renewal, True)],
)
async def test_a_rule_of_distrust_holds_in_a_registry_that_has_lost_it(
    may_renew: bool, how: Identify, is_refused: bool
) -> None:
    rule = Distrust("0" * 12, NOW, NOW, "cam", may_renew=may_renew)
    registry = OneHolder(OF_DEVICE)
    registry.revoked.on_event(Event(EventKind.DISTRUST_CHANGED, rule.id, rule_text(rule)))
    if not is_refused:
        await how(registry, PEER, NOW)
        return
    with pytest.raises(Refused) as caught:
        await how(registry, PEER, NOW)
    assert caught.value.code == "certificate-distrusted"
