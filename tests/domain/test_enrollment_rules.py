"""Checks that follow a model's rules, and what each grant covers, takes and writes."""

import hashlib
from dataclasses import replace
from datetime import timedelta

import pytest
from msgspec import structs

from fleet.domain import enrollment
from fleet.domain.approval import RequestState
from fleet.domain.claim import Claim
from fleet.domain.credential import DAY_SECONDS, CredentialKind, CredentialState, day_of
from fleet.domain.device import BARRED_MODEL, DeviceId
from fleet.domain.enrollment import permit_by_operator, permit_enrollment
from fleet.domain.errors import FleetError, Refused, TooMany
from fleet.domain.grants import (
    ApprovalGrant,
    ClaimGrant,
    IdevidGrant,
    ManifestGrant,
    RenewalGrant,
    StationGrant,
    TokenGrant,
)
from fleet.domain.idevid import Anchor, IdevidBinding, IdevidCertificate
from fleet.domain.issuance_context import Grant, IssuanceContext, Names
from fleet.domain.manifest import ManifestEntry
from fleet.domain.model_rules import (
    EXTENDED_KEY_USAGES,
    AdmissionPath,
    AdmissionRules,
    ModelRules,
    ProfileRules,
    RenewalKey,
    RenewalRules,
)
from fleet.domain.writes import (
    BindIdevid,
    CollectRequest,
    EndUnused,
    MarkUsed,
    SpendClaim,
    SpendStation,
    SpendToken,
    StillUsable,
)
from tests.domain.test_enrollment_checks import (
    ASKED,
    BY_CERTIFICATE,
    BY_MODEL_TOKEN,
    BY_STATION,
    BY_TOKEN,
    CREDENTIAL,
    DEVICE,
    MODEL,
    NAMES,
    NOW,
    REQUEST,
    SECOND,
    TOKEN,
    application,
    code,
    held,
    named,
)

CLAIM = Claim("batch", "cam2", 2, 0, NOW - SECOND, NOW + SECOND)
ENTRY = ManifestEntry(DeviceId("cam-7"), "cam2", "SN1", None, b"row")
LISTED = structs.replace(ENTRY, key_sha256=REQUEST.key_sha256)
ANOTHER_KEY = structs.replace(ENTRY, key_sha256=b"x" * 32)
MAKER = IdevidCertificate(b"m" * 32, b"n" * 32, ("SN1", "534e31"))
BINDING = IdevidBinding(MAKER.key_sha256, DeviceId("cam-7"), MAKER.fingerprint, "acme", NOW)
ANCHOR = Anchor("acme", ("cam2", "pump"), b"a" * 32, b"der", NOW)
BY_CLAIM = ClaimGrant(CLAIM, CREDENTIAL)
BY_IDEVID = IdevidGrant(ANCHOR, MAKER, ENTRY, (), "cam2")
BY_MANIFEST = ManifestGrant(LISTED)
BY_APPROVAL = ApprovalGrant(structs.replace(ASKED, state=RequestState.APPROVED))
FIRST: dict[AdmissionPath, Grant] = {
    AdmissionPath.TOKEN: BY_TOKEN,
    AdmissionPath.STATION: BY_STATION,
    AdmissionPath.CLAIM: BY_CLAIM,
    AdmissionPath.IDEVID: BY_IDEVID,
    AdmissionPath.MANIFEST: BY_MANIFEST,
    AdmissionPath.APPROVAL: BY_APPROVAL,
}


def ruled(grant: Grant = BY_TOKEN, *, profile: ProfileRules | None = None, **rules: object) -> IssuanceContext:
    """A context of a model with these rules."""
    values = {**rules, **({"profile": profile} if profile is not None else {})}
    return application(grant, model=structs.replace(MODEL, rules=ModelRules(**values)))  # type: ignore[arg-type]


@pytest.mark.parametrize("path", AdmissionPath)
def test_a_model_admits_by_its_paths_alone(path: AdmissionPath) -> None:
    grant = FIRST[path]
    assert (grant.path, grant.replaces) == (path, None)
    others = tuple(each for each in AdmissionPath if each is not path)
    assert code(enrollment.path_is_open, ruled(grant, admission=AdmissionRules((path,)))) == ""
    assert code(enrollment.path_is_open, ruled(grant, admission=AdmissionRules(others))) == "path-not-open"
    assert code(enrollment.path_is_open, ruled(BY_CERTIFICATE, admission=AdmissionRules(()))) == ""


def test_a_binding_is_needed_where_the_model_says_so_but_not_from_a_station() -> None:
    check, bound = enrollment.binding_is_there, ProfileRules(binding=True)
    for is_bound in (None, True, False):
        request = replace(REQUEST, is_bound=is_bound)
        assert code(check, structs.replace(ruled(), request=request)) == ""
        wanted = "binding-missing" if is_bound is None else ""
        assert code(check, structs.replace(ruled(profile=bound), request=request)) == wanted
        assert code(check, structs.replace(ruled(BY_STATION, profile=bound), request=request)) == ""


def test_keys_are_generated_only_where_the_model_allows_it() -> None:
    check, wanting = enrollment.keygen_is_open, replace(REQUEST, wants_key=True)
    assert code(check, ruled()) == ""
    assert code(check, structs.replace(ruled(), request=wanting)) == "keygen-not-open"
    assert code(check, structs.replace(ruled(profile=ProfileRules(server_keygen=True)), request=wanting)) == ""


CLIENT, MAIL, TLS_SERVER = (
    EXTENDED_KEY_USAGES["clientAuth"],
    EXTENDED_KEY_USAGES["emailProtection"],
    "1.3.6.1.5.5.7.3.1",
)
BOTH = ProfileRules(extended_key_usages=("clientAuth", "emailProtection"), csr_extended_key_usages=True)


@pytest.mark.parametrize(
    ("asked", "wanted", "given"),
    [
        (None, "", ("clientAuth", "emailProtection")),
        ((), "", ("clientAuth",)),
        ((MAIL,), "", ("clientAuth", "emailProtection")),
        ((CLIENT,), "", ("clientAuth",)),
        ((MAIL, TLS_SERVER), "usage-not-allowed", ()),
        ((EXTENDED_KEY_USAGES["ipsecIKE"],), "usage-not-allowed", ()),
    ],
)
def test_a_csr_chooses_among_the_models_usages(
    asked: tuple[str, ...] | None, wanted: str, given: tuple[str, ...]
) -> None:
    request = replace(REQUEST, extended_key_usages=asked)
    chosen = structs.replace(ruled(profile=BOTH), request=request)
    assert code(enrollment.usages_are_allowed, chosen) == wanted
    if not wanted:
        assert permit_enrollment(chosen).profile == structs.replace(BOTH, extended_key_usages=given)
    fixed = structs.replace(BOTH, csr_extended_key_usages=False)
    ignored = structs.replace(ruled(profile=fixed), request=request)
    assert code(enrollment.usages_are_allowed, ignored) == ""
    assert permit_enrollment(ignored).profile == fixed


@pytest.mark.parametrize("key", RenewalKey)
def test_a_renewal_keeps_or_changes_its_key_by_the_models_rule(key: RenewalKey) -> None:
    check, rules = enrollment.key_is_renewed_by_the_rule, RenewalRules(key)
    own = RenewalGrant(structs.replace(CREDENTIAL, key_sha256=REQUEST.key_sha256), NAMES)
    assert code(check, ruled(own, renewal=rules)) == ("key-not-new" if key is RenewalKey.NEW else "")
    assert code(check, ruled(BY_CERTIFICATE, renewal=rules)) == ("key-not-same" if key is RenewalKey.SAME else "")
    wanting = structs.replace(ruled(own, renewal=rules), request=replace(REQUEST, wants_key=True))
    assert code(check, wanting) == ("key-not-same" if key is RenewalKey.SAME else "")
    assert code(check, ruled(BY_TOKEN, renewal=rules)) == ""


def with_serials(*serials: str) -> Names:
    return Names((("2.5.4.3", "cam-7"), *(("2.5.4.5", serial) for serial in serials)))


@pytest.mark.parametrize(
    ("serials", "known", "wanted"),
    [
        ((), "SN 1", ""),
        (("SN 1",), "SN 1", ""),
        (("SN 2",), "SN 1", "not-this-hardware"),
        ((" sn  1",), "SN 1", ""),
        (("SN 2",), "", ""),
        (("SN 1", "SN 1"), "SN 1", "bad-hardware-serial"),
        (("SN_1",), "", "bad-hardware-serial"),
        (("",), "", "bad-hardware-serial"),
        (("  ",), "", "bad-hardware-serial"),
        (("x" * 64,), "", ""),
        (("x" * 65,), "", "bad-hardware-serial"),
    ],
)
def test_a_station_gives_one_serial_number_and_the_known_one(serials: tuple[str, ...], known: str, wanted: str) -> None:
    check, request = enrollment.hardware_is_as_known, replace(REQUEST, names=with_serials(*serials))
    device = structs.replace(DEVICE, hardware_serial=known)
    assert code(check, application(BY_STATION, request=request, device=device)) == wanted
    assert code(check, application(BY_TOKEN, request=request, device=device)) == ""
    unknown = application(BY_STATION, request=request, device=None)
    assert code(check, unknown) == ("bad-hardware-serial" if wanted == "bad-hardware-serial" else "")


def test_the_hardware_serial_is_the_registrys_or_for_a_new_device_its_stations() -> None:
    request = replace(REQUEST, names=with_serials("SN 9"))
    for grant, device, serial in (
        (BY_STATION, None, "SN 9"),
        (BY_STATION, structs.replace(DEVICE, hardware_serial=""), ""),
        (BY_MODEL_TOKEN, None, ""),
        (BY_TOKEN, DEVICE, "SN 1"),
    ):
        assert permit_enrollment(application(grant, request=request, device=device)).hardware_serial == serial
    assert enrollment.new_device(application(BY_STATION, request=request), NOW, ()).hardware_serial == "SN 1"


def test_a_barred_device_gets_nothing() -> None:
    barred = structs.replace(MODEL, name=BARRED_MODEL)
    for grant in (*FIRST.values(), BY_CERTIFICATE):
        assert code(enrollment.device_is_not_barred, application(grant, model=barred)) == "device-barred"
        assert code(enrollment.device_is_not_barred, application(grant)) == ""


def test_a_permit_names_model_tenant_and_grant() -> None:
    permit = permit_enrollment(ruled(tenant="acme"))
    assert (permit.model, permit.tenant, permit.grant) == ("cam2", "acme", "token t1")
    assert permit_enrollment(application()).tenant == ""


def test_permits_by_hand_are_of_their_kind() -> None:
    operator = permit_by_operator(CredentialKind.OPERATOR, "bob", b"spki", NOW + SECOND, NOW)
    assert (operator.kind, operator.holder, operator.model) == (CredentialKind.OPERATOR, "bob", "")
    claim = permit_by_operator(CredentialKind.CLAIM, "batch", b"spki", NOW + SECOND, NOW, model="cam2")
    assert (claim.kind, claim.holder, claim.model) == (CredentialKind.CLAIM, "batch", "cam2")
    digest = hashlib.sha256(b"spki").digest()
    for permit in (operator, claim):
        assert (permit.spki_der, permit.key_sha256, permit.hardware_serial, permit.tenant) == (b"spki", digest, "", "")
        assert (permit.not_before, permit.not_after) == (NOW, NOW + SECOND)


def refused(grant: Grant) -> str:
    with pytest.raises(Refused) as caught:
        grant.model_for_new_device(DEVICE.id)
    return caught.value.code


def test_the_model_of_a_new_device_follows_from_the_grant() -> None:
    assert BY_MODEL_TOKEN.model_for_new_device(DEVICE.id) == "cam2"
    assert refused(BY_TOKEN) == "unknown-device"
    assert refused(structs.replace(BY_TOKEN, token=structs.replace(BY_TOKEN.token, device_id=DeviceId("x")))) == (
        "not-your-identity"
    )
    assert BY_STATION.model_for_new_device(DEVICE.id) == "cam2"
    assert structs.replace(BY_STATION, model="").model_for_new_device(DEVICE.id) == "cam2"
    several = structs.replace(BY_STATION, station=structs.replace(BY_STATION.station, models=("cam2", "pump")))
    assert structs.replace(several, model="pump").model_for_new_device(DEVICE.id) == "pump"
    assert refused(structs.replace(several, model="")) == "model-not-named"
    assert BY_CLAIM.model_for_new_device(DEVICE.id) == "cam2"
    assert BY_IDEVID.model_for_new_device(DEVICE.id) == "cam2"
    assert structs.replace(BY_IDEVID, entry=None, model="pump").model_for_new_device(DEVICE.id) == "pump"
    assert refused(structs.replace(BY_IDEVID, entry=None, model="")) == "model-not-named"
    assert BY_MANIFEST.model_for_new_device(DEVICE.id) == "cam2"
    assert BY_APPROVAL.model_for_new_device(DEVICE.id) == "cam2"
    assert refused(BY_CERTIFICATE) == "unknown-device"


def test_the_audit_names_the_grant() -> None:
    grants = (BY_TOKEN, BY_STATION, BY_CLAIM, BY_IDEVID, BY_MANIFEST, BY_APPROVAL, BY_CERTIFICATE)
    assert [str(grant) for grant in grants] == [
        "token t1",
        "station st1",
        "claim batch",
        "idevid acme " + "6e" * 8,
        "manifest cam-7",
        f"request {ASKED.id}",
        "certificate 01",
    ]


@pytest.mark.parametrize(
    ("changed", "wanted"),
    [
        ({}, ""),
        ({"revoked_at": NOW}, "claim-revoked"),
        ({"quarantined_at": NOW}, "claim-quarantined"),
        ({"expires_at": NOW}, "claim-expired"),
        ({"expires_at": NOW + SECOND}, ""),
        ({"uses": 1}, ""),
        ({"uses": 2}, "claim-used-up"),
        ({"uses": 3}, "claim-used-up"),
    ],
)
def test_a_claim_is_good_up_to_its_quota_and_end(changed: dict[str, object], wanted: str) -> None:
    grant = ClaimGrant(structs.replace(CLAIM, **changed), CREDENTIAL)
    assert code(enrollment.grant_is_valid, application(grant)) == wanted
    repeated = application(grant, held(CredentialState.ISSUED, same_key=True))
    assert code(enrollment.grant_is_valid, repeated) == ("" if wanted == "claim-used-up" else wanted)


def test_a_stations_quota_is_of_the_day() -> None:
    def with_quota(quota: int, used: int, day: int = day_of(NOW)) -> StationGrant:
        return structs.replace(BY_STATION, station=structs.replace(BY_STATION.station, quota=quota, used=used, day=day))

    for grant, wanted in (
        (with_quota(0, 9), ""),
        (with_quota(2, 1), ""),
        (with_quota(2, 2), "station-quota"),
        (with_quota(2, 3), "station-quota"),
        (with_quota(2, 2, day_of(NOW) - 1), ""),
    ):
        assert code(enrollment.grant_is_valid, application(grant)) == wanted
        repeated = application(grant, held(CredentialState.ISSUED, same_key=True))
        assert code(enrollment.grant_is_valid, repeated) == ""
    with pytest.raises(TooMany) as caught:
        enrollment.grant_is_valid(application(with_quota(2, 2)))
    assert caught.value.retry_after_seconds == DAY_SECONDS // 2  # NOW is noon
    assert with_quota(2, 1).writes(application()) == (
        StillUsable(CREDENTIAL.fingerprint),
        SpendStation("st1", day_of(NOW)),
    )
    assert with_quota(0, 1).writes(application()) == (StillUsable(CREDENTIAL.fingerprint),)


def test_a_certificates_first_use_is_marked() -> None:
    """The other tests' is ACTIVE, and stays as it is."""
    unused = structs.replace(CREDENTIAL, state=CredentialState.ISSUED)
    for grant in (BY_STATION, BY_CLAIM, BY_CERTIFICATE):
        assert MarkUsed(CREDENTIAL.fingerprint) in structs.replace(grant, credential=unused).writes(application())


@pytest.mark.parametrize("entry", [None, ENTRY, LISTED, ANOTHER_KEY])
def test_a_shared_grant_respects_the_listed_key(entry: ManifestEntry | None) -> None:
    wanted = "not-your-key" if entry is ANOTHER_KEY else ""
    for grant in (
        structs.replace(BY_MODEL_TOKEN, listed=entry),
        structs.replace(BY_CLAIM, listed=entry),
        structs.replace(BY_APPROVAL, listed=entry),
    ):
        assert code(enrollment.grant_covers_device, application(grant)) == wanted
    assert code(enrollment.grant_covers_device, application(structs.replace(BY_TOKEN, listed=entry))) == ""


def test_a_claim_covers_devices_of_its_model() -> None:
    assert (
        code(enrollment.grant_covers_device, application(BY_CLAIM, model=structs.replace(MODEL, name="pump")))
        == "not-your-model"
    )


@pytest.mark.parametrize("grant", [BY_CLAIM, BY_IDEVID, BY_APPROVAL, BY_MODEL_TOKEN])
def test_a_shared_grant_takes_over_no_identity(grant: Grant) -> None:
    check = enrollment.identity_is_free
    assert code(check, application(grant)) == ""
    assert code(check, application(grant, held(CredentialState.ISSUED, same_key=True))) == ""
    assert code(check, application(grant, held(CredentialState.ISSUED))) == "already-enrolled"
    assert code(check, application(grant, held(CredentialState.ACTIVE, same_key=True))) == "already-enrolled"
    archived = structs.replace(DEVICE, expires_at=NOW - timedelta(days=400))
    assert code(check, application(grant, device=archived)) == "already-enrolled"


def test_a_listed_key_enrolls_again_until_it_was_renewed_with_another() -> None:
    check = enrollment.identity_is_free
    assert code(check, application(BY_MANIFEST)) == ""
    assert code(check, application(BY_MANIFEST, held(CredentialState.ACTIVE, same_key=True))) == ""
    assert code(check, application(BY_MANIFEST, held(CredentialState.ACTIVE))) == "already-enrolled"
    archived = structs.replace(DEVICE, expires_at=NOW - timedelta(days=400))
    assert code(check, application(BY_MANIFEST, device=archived)) == "already-enrolled"


def test_a_listed_key_covers_its_device() -> None:
    check = enrollment.grant_covers_device
    assert code(check, application(BY_MANIFEST)) == ""
    for changed in (structs.replace(LISTED, device_id=DeviceId("cam-8")), structs.replace(LISTED, model="pump")):
        assert code(check, application(ManifestGrant(changed))) == "not-your-identity"
    assert code(check, application(ManifestGrant(ANOTHER_KEY))) == "not-your-key"


def test_a_manufacturers_certificate_covers_the_device_with_its_serial() -> None:
    check, any_idevid = enrollment.grant_covers_device, ModelRules(admission=AdmissionRules(any_idevid=True))
    open_model = structs.replace(MODEL, rules=any_idevid)
    unlisted = structs.replace(BY_IDEVID, entry=None)
    assert code(check, application(BY_IDEVID)) == ""
    assert code(check, application(BY_IDEVID, request=named("cam-8"))) == "not-your-identity"
    assert code(check, application(BY_IDEVID, request=named("SN1"))) == "not-your-identity"
    assert code(check, application(BY_IDEVID, request=replace(REQUEST, wants_key=True))) == "idevid-only-enrolls"
    assert code(check, application(BY_IDEVID, model=structs.replace(MODEL, name="valve"))) == "not-your-model"
    assert code(check, application(unlisted, request=named("SN1"))) == "not-on-manifest"
    assert code(check, application(unlisted, request=named("SN1"), model=open_model)) == ""
    assert code(check, application(unlisted, request=named("534e31"), model=open_model)) == ""
    assert code(check, application(unlisted, model=open_model)) == "not-your-identity"


def test_a_manufacturers_certificate_is_bound_to_one_device() -> None:
    check = enrollment.grant_covers_device
    assert code(check, application(structs.replace(BY_IDEVID, bindings=(BINDING,)))) == ""
    elsewhere = structs.replace(BINDING, device_id=DeviceId("cam-8"))
    assert code(check, application(structs.replace(BY_IDEVID, bindings=(elsewhere,)))) == "idevid-bound"
    another = structs.replace(BINDING, key_sha256=b"z" * 32)
    assert code(check, application(structs.replace(BY_IDEVID, bindings=(another,)))) == "idevid-of-another"
    bound = structs.replace(BY_IDEVID, bindings=(BINDING,))
    assert code(enrollment.identity_is_free, application(bound, held(CredentialState.ACTIVE))) == ""


def test_each_grant_is_used_up_with_the_certificate() -> None:
    a = application()
    assert BY_TOKEN.writes(a) == (SpendToken("t1"),)
    assert BY_CLAIM.writes(a) == (SpendClaim("batch"), StillUsable(CREDENTIAL.fingerprint))
    assert BY_IDEVID.writes(a) == (BindIdevid(BINDING),)
    assert BY_MANIFEST.writes(a) == ()
    assert BY_APPROVAL.writes(a) == (CollectRequest(ASKED.id),)
    assert (BY_CERTIFICATE.path, BY_CERTIFICATE.replaces) == (None, CREDENTIAL)


def test_a_renewal_ends_the_unused_successors_before_it() -> None:
    unused = [
        structs.replace(held(CredentialState.ISSUED), fingerprint=mark * 32, grant="certificate 01")
        for mark in (b"1", b"2")
    ]
    used = StillUsable(CREDENTIAL.fingerprint)
    newest = application(BY_CERTIFICATE, CREDENTIAL, *unused)
    assert BY_CERTIFICATE.writes(newest) == (
        used,
        EndUnused(CredentialKind.DEVICE, "cam-7", "certificate 01", b"2" * 32),
    )
    none = application(BY_CERTIFICATE, CREDENTIAL)
    assert BY_CERTIFICATE.writes(none) == (used, EndUnused(CredentialKind.DEVICE, "cam-7", "certificate 01", None))


def test_a_grace_period_lengthens_a_renewal() -> None:
    late = structs.replace(BY_CERTIFICATE, grace=timedelta(days=3))
    end = CREDENTIAL.not_after + timedelta(days=3)
    assert code(enrollment.grant_is_valid, application(late, now=end - SECOND)) == ""
    assert code(enrollment.grant_is_valid, application(late, now=end)) == "certificate-expired"


def test_a_token_grant_says_which_token() -> None:
    assert TokenGrant(structs.replace(TOKEN, id="t9"), "").writes(application()) == (SpendToken("t9"),)
    with pytest.raises(FleetError, match="differ"):
        enrollment.grant_covers_device(application(TokenGrant(TOKEN, "cam-8")))
