"""The checks of an enrollment, one by one: what each lets through, and the code with which it refuses."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from msgspec import structs

from fleet.domain import enrollment
from fleet.domain.approval import ApprovalRequest, RequestState
from fleet.domain.credential import Credential, CredentialKind, CredentialState, KeyUse, Station, Token
from fleet.domain.device import Device, DeviceId, DeviceState, Model
from fleet.domain.enrollment import permit_by_operator, permit_enrollment
from fleet.domain.errors import FleetError, Invalid
from fleet.domain.grants import ApprovalGrant, RenewalGrant, StationGrant, TokenGrant
from fleet.domain.issuance_context import EnrollmentRequest, Grant, IssuanceContext, Names, issued_before

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
SECOND = timedelta(seconds=1)
NAMES = Names((("2.5.4.3", "cam-7"),), ("other:x",))
MODEL = Model("cam2", timedelta(days=30), ("EC-P256",))
DEVICE = Device(DeviceId("cam-7"), "cam2", DeviceState.REGISTERED, NOW, "SN 1")
REQUEST = EnrollmentRequest(NAMES, "EC-P256", b"spki", b"key" * 8)
TOKEN = Token("t1", bytes(32), DeviceId("cam-7"), None, 1, 0, NOW - SECOND, NOW + SECOND)
MODEL_TOKEN = structs.replace(TOKEN, device_id=None, model="cam2")
CREDENTIAL = Credential(
    fingerprint=b"f" * 32,
    serial="01",
    kind=CredentialKind.DEVICE,
    holder="cam-7",
    key_sha256=b"old" * 8,
    not_before=NOW - timedelta(days=1),
    not_after=NOW + timedelta(days=29),
    state=CredentialState.ACTIVE,
    issued_at=NOW - timedelta(days=1),
    der=b"der",
)
BY_TOKEN = TokenGrant(TOKEN, "cam-7")
BY_MODEL_TOKEN = TokenGrant(MODEL_TOKEN, "")
BY_STATION = StationGrant(Station("st1", ("cam2",), NOW), "cam2", CREDENTIAL)
BY_CERTIFICATE = RenewalGrant(CREDENTIAL, NAMES)
ASKED = ApprovalRequest(
    id="0" * 16,
    device_id=DeviceId("cam-7"),
    model="cam2",
    key_sha256=REQUEST.key_sha256,
    key_type="EC-P256",
    facts="",
    address="",
    network="",
    first_seen=NOW,
    last_seen=NOW,
    expires_at=NOW + SECOND,
)
GRANTS = (BY_TOKEN, BY_MODEL_TOKEN, BY_STATION, BY_CERTIFICATE)


def application(grant: Grant = BY_TOKEN, *credentials: Credential, **given: object) -> IssuanceContext:
    values: dict[str, object] = {"request": REQUEST, "device": DEVICE, "model": MODEL, "now": NOW, **given}
    return IssuanceContext(grant=grant, credentials=credentials, **values)  # type: ignore[arg-type]  # a test's shorthand


def held(state: CredentialState, *, same_key: bool = False) -> Credential:
    return structs.replace(
        CREDENTIAL, state=state, key_sha256=REQUEST.key_sha256 if same_key else CREDENTIAL.key_sha256
    )


def named(text: str) -> EnrollmentRequest:
    return replace(REQUEST, names=Names((("2.5.4.3", text),)))


def code(check: Callable[[IssuanceContext], object], a: IssuanceContext) -> str:
    """The code with which `check` refuses, "" when it lets `a` through."""
    try:
        check(a)
    except FleetError as error:
        return error.code
    return ""


@pytest.mark.parametrize("grant", GRANTS)
def test_a_right_application_passes_every_check(grant: Grant) -> None:
    a = application(grant, *((CREDENTIAL,) if grant is BY_CERTIFICATE else ()))
    assert [code(check, a) for check in enrollment.CHECKS] == [""] * len(enrollment.CHECKS)


def test_binding_is_to_this_connection() -> None:
    check = enrollment.binding_is_to_this_connection
    a = application()
    for fine in (None, True):
        check(structs.replace(a, request=replace(a.request, is_bound=fine)))
    assert code(check, structs.replace(a, request=replace(a.request, is_bound=False))) == "not-this-connection"


def test_key_is_allowed() -> None:
    check = enrollment.key_is_allowed
    for key_type in ("Ed25519", "EC-P521", "", "ec-p256", "EC-P256 "):
        assert code(check, application(request=replace(REQUEST, key_type=key_type))) == "key-not-allowed"
    assert code(check, application(request=replace(REQUEST, key_type="EC-P384"))) == "key-not-allowed"
    wider = structs.replace(MODEL, key_types=("EC-P256", "EC-P384"))
    assert code(check, application(request=replace(REQUEST, key_type="EC-P384"), model=wider)) == ""


@pytest.mark.parametrize("grant", GRANTS)
def test_key_is_not_revoked(grant: Grant) -> None:
    check = enrollment.key_is_not_revoked
    for holder in ("cam-7", "cam-8"):
        uses = {s: KeyUse(CredentialKind.DEVICE, holder, s) for s in CredentialState}
        assert code(check, application(grant, key_uses=tuple(uses.values()))) == "key-revoked"
        del uses[CredentialState.REVOKED]
        assert code(check, application(grant, key_uses=tuple(uses.values()))) == ""


@pytest.mark.parametrize("grant", GRANTS)
@pytest.mark.parametrize("state", CredentialState)
def test_key_is_its_own(grant: Grant, state: CredentialState) -> None:
    check = enrollment.key_is_its_own
    own = KeyUse(CredentialKind.DEVICE, "cam-7", state)
    assert code(check, application(grant, key_uses=(own,))) == ""
    for other in (structs.replace(own, holder="cam-8"), structs.replace(own, kind=CredentialKind.STATION)):
        assert code(check, application(grant, key_uses=(own, other))) == "key-in-use"


class TestGrantIsValid:
    @pytest.mark.parametrize(
        ("changed", "expected"),
        [
            ({}, ""),
            ({"revoked_at": NOW}, "token-revoked"),
            ({"expires_at": NOW}, "token-expired"),
            ({"expires_at": NOW - SECOND}, "token-expired"),
            ({"uses": 1}, "token-used-up"),
            ({"uses": 2}, "token-used-up"),
            ({"uses": 1, "uses_max": 2}, ""),
        ],
    )
    def test_of_a_token(self, changed: dict[str, object], expected: str) -> None:
        grant = TokenGrant(structs.replace(TOKEN, **changed), "cam-7")
        assert code(enrollment.grant_is_valid, application(grant)) == expected

    def test_of_a_spent_token_whose_answer_was_lost(self) -> None:
        spent = TokenGrant(structs.replace(TOKEN, uses=1), "cam-7")
        earned = held(CredentialState.ISSUED, same_key=True)
        assert code(enrollment.grant_is_valid, application(spent, earned)) == ""
        for other in (held(CredentialState.ISSUED), held(CredentialState.ACTIVE, same_key=True)):
            assert code(enrollment.grant_is_valid, application(spent, other)) == "token-used-up"

    @pytest.mark.parametrize("state", CredentialState)
    def test_of_a_certificate_by_its_state(self, state: CredentialState) -> None:
        usable = state in (CredentialState.ISSUED, CredentialState.ACTIVE)
        grant = RenewalGrant(held(state), NAMES)
        assert code(enrollment.grant_is_valid, application(grant)) == ("" if usable else f"certificate-{state}")

    @pytest.mark.parametrize(
        ("now", "expected"),
        [
            (CREDENTIAL.not_before - SECOND, "certificate-expired"),
            (CREDENTIAL.not_before, ""),
            (CREDENTIAL.not_after - SECOND, ""),
            (CREDENTIAL.not_after, "certificate-expired"),
        ],
    )
    def test_of_a_certificate_by_the_time(self, now: datetime, expected: str) -> None:
        assert code(enrollment.grant_is_valid, application(BY_CERTIFICATE, now=now)) == expected


class TestGrantCoversDevice:
    check = staticmethod(enrollment.grant_covers_device)

    def test_by_a_device_token(self) -> None:
        assert code(self.check, application(TokenGrant(TOKEN, ""))) == ""
        assert code(self.check, application(TokenGrant(TOKEN, "cam-8"))) == "not-your-identity"
        assert code(self.check, application(BY_TOKEN, request=named("cam-8"))) == "not-your-identity"
        for_other = TokenGrant(TOKEN, "cam-8")
        assert code(self.check, application(for_other, request=named("cam-8"))) == "not-your-identity"
        assert code(self.check, application(BY_TOKEN, request=named("CAM-7"))) == "not-your-identity"

    def test_by_a_model_token(self) -> None:
        assert code(self.check, application(BY_MODEL_TOKEN, request=named("cam-8"))) == ""
        other = structs.replace(MODEL, name="pump")
        assert code(self.check, application(BY_MODEL_TOKEN, model=other)) == "not-your-model"

    def test_by_a_station(self) -> None:
        assert code(self.check, application(BY_STATION, model=structs.replace(MODEL, name="pump"))) == "not-your-model"
        several = StationGrant(Station("st1", ("cam2", "pump"), NOW), "pump", CREDENTIAL)
        assert code(self.check, application(several, model=structs.replace(MODEL, name="pump"))) == ""

    def test_by_a_certificate(self) -> None:
        assert code(self.check, application(BY_CERTIFICATE, request=named("cam-8"))) == "not-your-identity"

    def test_exactly_one_common_name(self) -> None:
        for subject in ((), (("2.5.4.3", "cam-7"), ("2.5.4.3", "cam-8"))):
            request = replace(REQUEST, names=Names(subject))
            assert code(self.check, application(request=request)) == "no-common-name"


@pytest.mark.parametrize("grant", GRANTS)
def test_device_is_in_service(grant: Grant) -> None:
    check = enrollment.device_is_in_service
    expected = {s: "" if s in ("registered", "active") else f"device-{s}" for s in DeviceState}
    found = {s: code(check, application(grant, device=structs.replace(DEVICE, state=s))) for s in DeviceState}
    assert found == expected
    assert code(check, application(grant, device=None)) == ""


class TestIdentityIsFree:
    check = staticmethod(enrollment.identity_is_free)

    @pytest.mark.parametrize("grant", [BY_MODEL_TOKEN, BY_STATION])
    @pytest.mark.parametrize("state", [CredentialState.ACTIVE, CredentialState.SUPERSEDED, CredentialState.REVOKED])
    def test_a_right_over_a_model_never_takes_what_was_in_use(self, grant: Grant, state: CredentialState) -> None:
        for same_key in (False, True):
            assert code(self.check, application(grant, held(state, same_key=same_key))) == "already-enrolled"

    def test_nor_does_a_model_token_take_what_another_key_was_given(self) -> None:
        assert code(self.check, application(BY_MODEL_TOKEN, held(CredentialState.ISSUED))) == "already-enrolled"
        same = held(CredentialState.ISSUED, same_key=True)
        assert code(self.check, application(BY_MODEL_TOKEN, same)) == ""

    def test_a_station_may_repeat_a_run(self) -> None:
        own = structs.replace(held(CredentialState.ISSUED), grant="station st1")
        assert code(self.check, application(BY_STATION, own)) == ""

    @pytest.mark.parametrize("grant", ["token t1", "station st2", "certificate 01"])
    def test_but_not_take_what_another_right_has_earned(self, grant: str) -> None:
        own = structs.replace(held(CredentialState.ISSUED), grant="station st1")
        other = structs.replace(own, grant=grant)
        assert code(self.check, application(BY_STATION, other, own)) == "already-enrolled"

    @pytest.mark.parametrize("grant", [BY_TOKEN, BY_CERTIFICATE])
    @pytest.mark.parametrize("state", CredentialState)
    def test_its_own_token_and_its_own_certificate_may(self, grant: Grant, state: CredentialState) -> None:
        assert code(self.check, application(grant, held(state))) == ""


@pytest.mark.parametrize(
    "names",
    [
        Names(NAMES.subject, ()),
        Names(NAMES.subject, ("other:y",)),
        Names(NAMES.subject, ("other:x", "DNS:a")),
        Names((*NAMES.subject, ("2.5.4.5", "SN 1")), NAMES.alt_names),
        Names((("2.5.4.3", "Cam-7"),), NAMES.alt_names),
    ],
)
def test_names_are_unchanged(names: Names) -> None:
    check, request = enrollment.names_are_unchanged, replace(REQUEST, names=names)
    assert code(check, application(BY_CERTIFICATE, request=request)) == "names-changed"
    for grant in (BY_TOKEN, BY_MODEL_TOKEN, BY_STATION):  # there is no certificate yet to match
        assert code(check, application(grant, request=request)) == ""


def test_is_approved() -> None:
    check = enrollment.request_is_approved
    assert code(check, application()) == ""
    for state in RequestState:
        asked = ApprovalGrant(structs.replace(ASKED, state=state))
        assert code(check, application(asked)) == ("approval-pending" if state is RequestState.PENDING else "")


class TestAnOperatorsWord:
    """The grant of a request that waits, or has been decided."""

    @pytest.mark.parametrize(
        ("state", "expected"),
        [
            (RequestState.DENIED, "request-denied"),
            (RequestState.ISSUED, "request-used-up"),
            (RequestState.APPROVED, ""),
        ],
    )
    def test_as_long_as_it_holds(self, state: RequestState, expected: str) -> None:
        assert (
            code(enrollment.grant_is_valid, application(ApprovalGrant(structs.replace(ASKED, state=state)))) == expected
        )

    def test_an_answer_that_was_lost_is_given_again(self) -> None:
        issued = ApprovalGrant(structs.replace(ASKED, state=RequestState.ISSUED))
        assert not issued.is_new
        lost = held(CredentialState.ISSUED, same_key=True)
        assert code(enrollment.grant_is_valid, application(issued, lost)) == ""
        used = held(CredentialState.ACTIVE, same_key=True)
        assert code(enrollment.grant_is_valid, application(issued, used)) == "request-used-up"

    def test_for_this_key_and_device_and_model(self) -> None:
        check = enrollment.grant_covers_device
        assert code(check, application(ApprovalGrant(ASKED))) == ""
        for changed in (
            structs.replace(ASKED, device_id=DeviceId("cam-8")),
            structs.replace(ASKED, key_sha256=b"x" * 32),
        ):
            assert code(check, application(ApprovalGrant(changed))) == "not-your-identity"
        assert code(check, application(ApprovalGrant(structs.replace(ASKED, model="b")))) == "not-your-model"

    @pytest.mark.parametrize("state", CredentialState)
    def test_takes_nobodys_identity(self, state: CredentialState) -> None:
        assert code(enrollment.identity_is_free, application(ApprovalGrant(ASKED), held(state))) == "already-enrolled"
        mine = application(ApprovalGrant(ASKED), held(CredentialState.ISSUED, same_key=True))
        assert code(enrollment.identity_is_free, mine) == ""


class TestEarnedBefore:
    found = staticmethod(issued_before)

    def test_the_same_key_unused_in_the_first_half_of_its_life(self) -> None:
        earned = held(CredentialState.ISSUED, same_key=True)
        half = earned.not_before + (earned.not_after - earned.not_before) / 2
        assert self.found(application(BY_TOKEN, held(CredentialState.ACTIVE), earned)) == earned
        assert self.found(application(BY_TOKEN, earned, now=half - SECOND)) == earned
        assert self.found(application(BY_TOKEN, earned, now=half)) is None

    def test_another_key_or_one_that_was_used_is_none(self) -> None:
        used = held(CredentialState.ACTIVE, same_key=True)
        assert self.found(application(BY_TOKEN)) is None
        assert self.found(application(BY_TOKEN, used, held(CredentialState.ISSUED))) is None

    def test_a_renewal_looks_only_at_what_came_after_its_own_certificate(self) -> None:
        own = structs.replace(held(CredentialState.ISSUED, same_key=True), fingerprint=b"o" * 32)
        later = structs.replace(own, fingerprint=b"l" * 32)
        grant = RenewalGrant(own, NAMES)
        assert self.found(application(grant, own)) is None
        assert self.found(application(grant, later, own)) is None
        assert self.found(application(grant, own, later)) == later


class TestPermit:
    def test_names_come_from_the_registry(self) -> None:
        asked = replace(REQUEST, names=Names((("2.5.4.3", "cam-7"), ("2.5.4.5", "SN 666")), ("DNS:evil",)))
        permit = permit_enrollment(application(request=asked))
        assert (permit.kind, permit.holder, permit.hardware_serial) == (CredentialKind.DEVICE, "cam-7", "SN 1")
        assert (permit.spki_der, permit.key_sha256, permit.grant) == (b"spki", REQUEST.key_sha256, "token t1")
        assert (permit.not_before, permit.not_after) == (NOW, NOW + MODEL.certificate_lifetime)

    def test_a_new_device_is_registered_under_the_grants_model(self) -> None:
        a = application(BY_STATION, device=None)
        assert permit_enrollment(a).hardware_serial == ""
        new = enrollment.new_device(a, NOW + SECOND, (("site", "Oslo"),))
        expected = Device(DeviceId("cam-7"), "cam2", DeviceState.ACTIVE, NOW, expires_at=NOW + SECOND)
        budget = NOW + timedelta(days=1) / a.model.rules.renewal.certificates_per_day
        assert new == structs.replace(expected, tags=(("site", "Oslo"),), budget_full_at=budget)

    @pytest.mark.parametrize("text", ["", "+", "a/b", "a\0b", "x" * 65, "devices/#"])
    def test_a_name_that_is_no_device_id(self, text: str) -> None:
        with pytest.raises(Invalid) as caught:
            permit_enrollment(application(BY_MODEL_TOKEN, request=named(text), device=None))
        assert caught.value.code == "bad-device-id"

    def test_every_check_has_its_say(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[int] = []
        checks = tuple(lambda _, n=n: asked.append(n) for n in range(len(enrollment.CHECKS)))
        monkeypatch.setattr(enrollment, "CHECKS", checks)
        permit_enrollment(application())
        assert asked == list(range(len(checks)))

    def test_for_a_station(self) -> None:
        permit = permit_by_operator(CredentialKind.STATION, BY_STATION.station.name, b"spki", NOW + SECOND, NOW)
        assert (permit.kind, permit.holder, permit.grant) == (CredentialKind.STATION, "st1", "operator")
        assert (permit.not_before, permit.not_after) == (NOW, NOW + SECOND)


def test_every_named_check_runs() -> None:
    verbs = ("is", "are", "covers")
    named_checks = {value for name, value in vars(enrollment).items() if name.split("_")[1:2] in [[v] for v in verbs]}
    assert named_checks == set(enrollment.CHECKS)
