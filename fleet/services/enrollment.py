"""First certificates and renewals: read the facts, ask the domain, sign, commit; only then does a certificate leave.

    enroll      by what the client shows of itself: `fleet.services.credentials` makes a right of it
    reenroll    by the device's own current certificate, and by nothing else

A request that comes again because the answer was lost gets the certificate it has earned already, never a second
one. When somebody else changed the facts between our look and our commit, we look again, and the checks name the
reason. Every refusal is written to the audit before it is told.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import datetime

from fleet.domain.approval import DEFAULT_WAITING, WaitingLimits
from fleet.domain.authorization import Verdict
from fleet.domain.changes import AuditEntry, Change, Event, EventKind
from fleet.domain.claim import Claim
from fleet.domain.credential import USABLE, Credential
from fleet.domain.device import BARRED_MODEL, DeviceId, DeviceState, Model, Tags, device_id
from fleet.domain.enrollment import new_device, permit_enrollment
from fleet.domain.errors import Conflict, FleetError, Pending, Refused, Unauthenticated, Unavailable, Unreachable
from fleet.domain.grants import ApprovalGrant, ClaimGrant, RenewalGrant
from fleet.domain.idevid import MakerReader
from fleet.domain.issuance_context import Application, EnrollmentRequest, Grant, Names, earned_before
from fleet.domain.labels import leads_to
from fleet.domain.peer import Peer
from fleet.domain.ports import EnrollmentFacts, Issuer, KeyMaker, Registry
from fleet.domain.writes import AddCredential, AddDevice, MoveDevice, TagDevice, Write
from fleet.services.approvals import wait
from fleet.services.authorization import Authoriser, allowed, question_of, tags_with, verdict_of
from fleet.services.claims import misused
from fleet.services.credentials import BasicCredentials, evidence_of, grant_of
from fleet.services.identity import NO_GRACE, NOBODY, identify, identify_for_renewal, shown_by
from fleet.services.refusals import refusals_of

CHEAP = ("token ", "request ", "claim ", "idevid ", "manifest ", "device ")
"""Actors who can ask for ever and be refused, or be given what they have: their right stays known when it has ended, or
is theirs for good.
"""

LOOKS_MAX = 4  # each further look means that somebody else's commit came between


async def enroll(
    registry: Registry,
    issuer: Issuer,
    peer: Peer,
    credentials: BasicCredentials | None,
    request: EnrollmentRequest,
    label: str | None,
    now: datetime,
    *,
    waiting: WaitingLimits = DEFAULT_WAITING,
    authoriser: Authoriser | None = None,
    read_maker: MakerReader | None = None,
) -> Credential:
    """A first certificate for the device that `request` names; durable when this returns.

    `label` names the model or its tenant, and is needed only from a station that provisions several models and for a
    device that is new and shows nothing. `waiting`: how many may wait for an operator, and how long. `authoriser` asks
    the webhook of a model that has one; without it, such a model's devices get none. `read_maker` reads a maker's
    certificate; without, none is taken.

    Raises: Unauthenticated, Invalid, Refused, Unavailable. Pending: an operator has yet to say yes. TooMany.
    """
    attempt = _Attempt(registry, issuer, peer, request, label, now, action="device.enroll", read_maker=read_maker)
    attempt.waiting, attempt.authoriser = waiting, authoriser
    return await attempt.run(lambda: attempt.first(credentials))


async def reenroll(
    registry: Registry,
    issuer: Issuer,
    peer: Peer,
    request: EnrollmentRequest,
    label: str | None,
    current_names: Names,
    now: datetime,
) -> Credential:
    """The next certificate of the device whose current one `peer` presented; durable when this returns. For as long as
    the model's grace lasts, a certificate that has ended still earns its successor here, and opens nothing else.

    `current_names` are the names in that current certificate.

    Raises: Unauthenticated, Invalid, Refused, Unavailable.
    """
    attempt = _Attempt(registry, issuer, peer, request, label, now, action="device.reenroll")
    return await attempt.run(lambda: attempt.renewal(current_names, late=True))


async def enroll_with_new_key(
    registry: Registry,
    issuer: Issuer,
    peer: Peer,
    credentials: BasicCredentials | None,
    request: EnrollmentRequest,
    label: str | None,
    current_names: Names | None,
    key_maker: KeyMaker,
    now: datetime,
    *,
    authoriser: Authoriser | None = None,
    read_maker: MakerReader | None = None,
) -> Credential:
    """A certificate, first or next, for a key that `key_maker` makes once `request` has passed every check (RFC 7030,
    4.4); durable when this returns.

    `current_names` are the names in the certificate that `peer` presented, if it presented one. A request that comes
    again gets another key, if its right goes that far: the first is nowhere to be found.

    Raises: Unauthenticated, Invalid, Refused, Unavailable.
    """
    wanting = replace(request, wants_key=True)
    attempt = _Attempt(
        registry,
        issuer,
        peer,
        wanting,
        label,
        now,
        action="device.serverkeygen",
        key_maker=key_maker,
        authoriser=authoriser,
        read_maker=read_maker,
    )
    return await attempt.run(lambda: attempt.first_or_renewal(credentials, current_names))


@dataclass(slots=True)
class _Attempt:
    """One request on its way, and what the audit will say of it."""

    registry: Registry
    issuer: Issuer
    peer: Peer
    request: EnrollmentRequest
    label: str | None
    now: datetime
    action: str
    key_maker: KeyMaker | None = None
    read_maker: MakerReader | None = None
    claim: Claim | None = None
    """The one by whose right it is made."""
    actor: str = NOBODY
    subject: str = "device ?"
    waiting: WaitingLimits = DEFAULT_WAITING
    authoriser: Authoriser | None = None
    told: dict[str, str] = field(default_factory=dict)
    """What the audit says of a webhook that was asked."""
    verdicts: dict[tuple[str, str, str], Verdict] = field(default_factory=dict)
    """By URL, model and path: however often we look, it is asked once."""

    async def run(self, apply: Callable[[], Awaitable[Application]]) -> Credential:
        try:
            for _ in range(LOOKS_MAX):
                application = await apply()
                try:
                    return await self.settle(application)
                except Conflict:
                    continue  # a token spent, a device suspended: the next look shows which
            raise Unavailable("busy", "Others keep changing this device or token; nothing was done.", "Try again.")
        except Unreachable as refusal:
            await self.record(refusal)
            raise
        except Unavailable:
            raise  # the registry could not write this down either
        except Pending:
            raise  # written down, as often as it is worth a row
        except FleetError as refusal:
            await self.record(refusal)
            raise

    async def record(self, refusal: FleetError) -> None:
        """The refusal stands, row written or not. Who can be refused at no cost fills one row a minute."""
        try:
            if self.claim is not None:
                await misused(self.registry, self.claim, refusal.code, self.peer, self.now)
            detail: dict[str, str] = {}
            unknown = self.actor == NOBODY  # refused before we knew who asks
            if unknown:
                self.actor, detail = await shown_by(self.registry, self.peer)  # its certificate may still tell
            await self.write_down(self.entry(refusal.code, **detail), cheap=unknown)
        except Unavailable as error:
            refusal.add_note(f"The audit row could not be written: {error.message}")

    async def write_down(self, entry: AuditEntry, *, cheap: bool = False) -> None:
        """Nothing but a row has come of this attempt. Who can do that again at no cost fills one a minute.

        Raises: Unavailable.
        """
        cheap = cheap or self.actor.startswith(CHEAP)
        row = refusals_of(self.registry).row(entry) if cheap else entry
        if row is not None:
            await self.registry.commit(Change(row))

    async def first(self, credentials: BasicCredentials | None) -> Application:
        """The facts of a first enrollment.

        A certificate beside the right that is used must be good all the same, and when it is a device's, that of the
        very device.
        """
        holder = self.holder()
        evidence = await evidence_of(
            self.registry, self.peer, credentials, self.request, holder, self.label, self.now, self.read_maker
        )
        shown = evidence.presented
        grant = await grant_of(evidence)
        if grant is not None:
            if not (isinstance(grant, ApprovalGrant) and grant.is_new):  # a key that has just been made is nobody
                self.actor = str(grant)
            self.claim = grant.claim if isinstance(grant, ClaimGrant) else None
            if shown is not None and shown.device is not None and shown.device.id != holder:
                raise Refused("not-your-identity", "The certificate presented belongs to another device.")
        elif shown is None:
            raise Unauthenticated("no-credentials", "A token or a station's certificate is needed.")
        else:
            self.actor = f"{shown.credential.kind} {shown.credential.holder}"
            raise Refused("use-reenroll", "A device renews its own certificate by simplereenroll.")
        model = await self.model(evidence.facts, grant)
        return self.application(grant, evidence.facts, model)

    async def first_or_renewal(self, credentials: BasicCredentials | None, current: Names | None) -> Application:
        """serverkeygen is one operation for both: a device that shows its own certificate and no token renews."""
        shown = await self.registry.holder_facts(self.peer.fingerprint) if self.peer.fingerprint else None
        if credentials is None and current is not None and shown is not None and shown.device is not None:
            return await self.renewal(current)
        return await self.first(credentials)

    async def renewal(self, current_names: Names, *, late: bool = False) -> Application:
        """The facts of a renewal; with `late`, of a certificate that has ended within its model's grace too."""
        holder = self.holder()
        judge = identify_for_renewal if late else identify
        presented = await judge(self.registry, self.peer, self.now)
        self.actor = f"{presented.credential.kind} {presented.credential.holder}"
        if presented.device is None or presented.model is None:
            raise Refused("not-a-device", "Only a device's own certificate is renewed by simplereenroll.")
        facts = await self.registry.enrollment_facts(presented.device.id, None, self.request.key_sha256)
        grace = presented.model.rules.renewal.grace if late else NO_GRACE
        grant = RenewalGrant(presented.credential, current_names, grace)
        if holder != presented.device.id:
            raise Refused("not-your-identity", "The certificate presented belongs to another device.")
        self.check_label(presented.model)
        return self.application(grant, facts, presented.model)

    def application(self, grant: Grant, facts: EnrollmentFacts, model: Model) -> Application:
        # RFC 7030, 4.4.1: whose key has signed a request for another key says nothing; nobody has one yet to be made.
        uses = () if self.request.wants_key else facts.key_uses
        return Application(self.request, grant, facts.device, model, facts.credentials, self.now, key_uses=uses)

    def holder(self) -> DeviceId:
        holder = device_id(self.request.names.common_name())
        self.subject = f"device {holder}"
        return holder

    async def model(self, facts: EnrollmentFacts, grant: Grant) -> Model:
        """The model of the device; for one that is new, the model that the grant brings."""
        model = facts.model
        if facts.device is None:
            name = grant.model_of_newcomer()
            if model is None or model.name != name:
                model = await self.registry.model(name)
        if model is None:
            raise Refused("no-such-model", "There is no such model.")
        self.check_label(model)
        return model

    def check_label(self, model: Model) -> None:
        """Of what a barred device was, nobody knows the label."""
        if model.name == BARRED_MODEL:
            return
        if self.label is not None and not leads_to(self.label, model.name, model.rules):
            raise Refused("not-your-model", "The label in the path is neither the device's model nor its tenant.")

    async def settle(self, application: Application) -> Credential:
        """Raises: Conflict: the facts have changed since they were read; nothing was done."""
        try:
            permit = permit_enrollment(application)
        except Pending:
            raise await wait(self.registry, application, self.waiting, self.entry("")) from None
        if self.key_maker is not None:
            spki_der, key_sha256 = await self.key_maker.make(application.request.key_type)
            request = replace(application.request, spki_der=spki_der, key_sha256=key_sha256)
            application = replace(application, request=request)
            permit = permit_enrollment(application)
        earned = earned_before(application)
        if earned is not None:
            await self.write_down(self.entry("ok", serial=earned.serial, repeated="yes"))
            return earned
        tags = await self.authorised(application)
        credential = self.issuer.issue(permit, self.now)
        await self.registry.commit(
            Change(
                audit=self.entry("ok", serial=credential.serial, grant=permit.grant),
                writes=_writes(application, credential, tags),
                events=_events(application, credential, tags),
            )
        )
        return credential

    async def authorised(self, application: Application) -> Tags:
        """The device's tags, with those that the model's webhook gives with its yes to a first certificate.

        Raises: Refused (`webhook-denied`). Unreachable.
        """
        url = application.model.rules.admission.webhook
        if not url or application.grant.replaces is not None:
            return application.device.tags if application.device is not None else ()
        asked = (url, application.model.name, str(application.grant.path))
        try:
            if asked not in self.verdicts:
                question = question_of(application, self.peer)
                self.told = {"webhook": question.id}
                self.verdicts[asked] = await verdict_of(self.authoriser, url, question)
            verdict = self.verdicts[asked]
            if verdict.reason:
                self.told["webhook_reason"] = verdict.reason
            allowed(verdict)
            return tags_with(application, verdict)
        except Unreachable as error:
            self.told["webhook_problem"] = error.problem
            raise

    def entry(self, outcome: str, **detail: str) -> AuditEntry:
        return AuditEntry(
            self.now, self.actor, self.action, self.subject, outcome, self.peer.address, {**self.told, **detail}
        )


def _writes(application: Application, credential: Credential, tags: Tags) -> tuple[Write, ...]:
    device = application.device
    writes: list[Write] = []
    if device is None:
        newcomer = new_device(application)
        writes.append(
            AddDevice(replace(newcomer, state=DeviceState.ACTIVE, expires_at=credential.not_after, tags=tags))
        )
    else:
        # From the state that was judged, and no other: whoever is suspended, or enrolled by another, since we looked,
        # has moved. That is why it is written for an active device too.
        states = frozenset({device.state})
        writes.append(MoveDevice(device.id, states, DeviceState.ACTIVE, expires_at=credential.not_after))
        if tags != device.tags:
            writes.append(TagDevice(device.id, tags, device.groups, device.revision + 1))  # one further by the move
    writes += application.grant.writes(application)
    writes.append(AddCredential(credential))
    return tuple(writes)


def _events(application: Application, credential: Credential, tags: Tags) -> tuple[Event, ...]:
    events = []
    if application.device is None or application.device.state is not DeviceState.ACTIVE:
        events.append(Event(EventKind.DEVICE_STATE, credential.holder, DeviceState.ACTIVE))
    if application.device is not None and tags != application.device.tags:
        events.append(Event(EventKind.DEVICE_TAGGED, credential.holder))
    replaced = application.grant.replaces
    if replaced is not None:
        # The presented certificate is now in use, and with that those before it have ended.
        for older in application.credentials:
            if older.fingerprint == replaced.fingerprint:
                break
            if older.state in USABLE:
                events.append(Event(EventKind.CREDENTIAL_ENDED, credential.holder, older.fingerprint.hex()))
        for unused in application.earned_unused():
            events.append(Event(EventKind.CREDENTIAL_ENDED, credential.holder, unused.fingerprint.hex()))
    events.append(Event(EventKind.CREDENTIAL_ISSUED, credential.holder, credential.fingerprint.hex()))
    return tuple(events)
