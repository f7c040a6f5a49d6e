"""First certificates and renewals: read the facts, apply the domain's checks, sign, commit, return the certificate.

    async with authority.attempt("device.enroll", peer, now) as attempt:  # audits whatever is refused inside
        submission = Submission(request, credentials, label)              # parsed once
        credential = await attempt.enroll(submission)                     # durable when it returns

enroll: by the credentials that the client presented, see `fleet.services.credentials`. reenroll: by the device's own
current certificate and nothing else.

A request that is repeated because the answer was lost gets the certificate that was issued for it, never a second one.
When the facts change between reading and committing, they are read again, and the checks name the reason.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from types import TracebackType

from msgspec import structs

from fleet.domain.approval import DEFAULT_WAITING, WaitingLimits
from fleet.domain.authorization import Verdict
from fleet.domain.certificate_budget import CERTIFICATE_BUDGET, full_again_at
from fleet.domain.changes import AuditEntry, Change, Event, EventKind
from fleet.domain.claim import Claim
from fleet.domain.credential import Credential, CredentialKind, CredentialState, usable_before
from fleet.domain.device import BARRED_MODEL, DeviceState, Model, Tags
from fleet.domain.enrollment import new_device, permit_enrollment
from fleet.domain.errors import Conflict, FleetError, Pending, Refused, Unavailable, Unreachable
from fleet.domain.grants import ApprovalGrant, ClaimGrant, RenewalGrant, StationGrant
from fleet.domain.idevid import IdevidReader
from fleet.domain.issuance_context import EnrollmentRequest, Grant, IssuanceContext, Names, is_unused_for, issued_before
from fleet.domain.labels import label_selects
from fleet.domain.peer import Peer
from fleet.domain.ports import EnrollmentFacts, Issuer, KeyGenerator, Registry
from fleet.domain.writes import AddCredential, Insert, MoveDevice, TagDevice, Write
from fleet.services.approvals import wait_for_approval
from fleet.services.authorization import Authorizer, allowed, question_of, tags_with, verdict_of
from fleet.services.claims import misused
from fleet.services.credentials import Submission, authenticate, no_credentials, present
from fleet.services.first_use import ended_by_first_use
from fleet.services.identity import NO_GRACE, NOBODY, identify
from fleet.services.last_refusals import last_refusals_of
from fleet.services.refusals import audit_refusal, write_row

NO_DEVICE = "device ?"
"""Audit subject of a request that was refused before it was read."""

ATTEMPTS_MAX = 4  # each further one means that another commit came between reading and writing


@dataclass(slots=True)
class RegistrationAuthority:
    """Decides on certificate requests and has the issuer sign what is permitted."""

    registry: Registry
    issuer: Issuer
    waiting: WaitingLimits = DEFAULT_WAITING
    """How many requests may wait for an operator's approval, and how long."""
    authorizer: Authorizer | None = None
    """Asks the webhook of a model that has one; without it, such a model's devices are refused."""
    read_idevid: IdevidReader | None = None
    """Reads a manufacturer's certificate (IDevID); without it, none is accepted."""

    def attempt(self, action: str, peer: Peer, now: datetime) -> "Attempt":
        """An attempt by `peer` to get a certificate; `action` names it in the audit."""
        return Attempt(self, action, peer, now)


@dataclass(slots=True)
class Attempt:
    """One attempt to get a certificate, and what the audit will say about it.

    Use it as an async context manager: a FleetError that leaves the block is in the audit by then.
    """

    authority: RegistrationAuthority
    action: str
    peer: Peer
    now: datetime
    actor: str = NOBODY
    repeats_freely: bool = False
    """Whether repeated requests cost the actor nothing: it stays known after its right has ended, or it never ends."""
    subject: str = NO_DEVICE
    claim: Claim | None = None
    """The claim whose certificate authenticated the client."""
    webhook_detail: dict[str, str] = field(default_factory=dict)
    verdicts: dict[tuple[str, str, str], Verdict] = field(default_factory=dict)
    """By URL, model and path: a webhook is asked once, however often the facts are read."""

    async def __aenter__(self) -> "Attempt":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not isinstance(error, FleetError):
            return
        if isinstance(error, Unavailable) and not isinstance(error, Unreachable):
            return  # the registry could not record this either
        if not isinstance(error, Pending):  # recorded already, at most once a minute
            refusal = await self._audit_refusal(error)
            if refusal is not error:
                raise refusal from None

    async def enroll(self, submission: Submission) -> Credential:
        """A first certificate for the device that the request names.

        Raises: Unauthenticated, Invalid, Refused, Unavailable, TooMany. Pending: an operator has yet to approve.
        """
        return await self._settled(submission, self._first)

    async def reenroll(self, submission: Submission) -> Credential:
        """The next certificate of the device whose current one the client presented. Within the model's grace period an
        expired certificate may still be renewed here; nothing else accepts it.

        Raises: Unauthenticated, Invalid, Refused, Unavailable.
        """
        return await self._settled(submission, partial(self._renewal, is_late=True))

    async def enroll_with_new_key(self, submission: Submission, key_generator: KeyGenerator) -> Credential:
        """A certificate, first or next, for a key that `key_generator` makes once the request has passed every check
        (RFC 7030, 4.4). A repeated request gets another key, if its grant covers that: the first was kept nowhere.

        Raises: Unauthenticated, Invalid, Refused, Unavailable.
        """
        wanting = structs.replace(submission, request=replace(submission.request, wants_key=True))
        return await self._settled(wanting, self._first_or_renewal, key_generator)

    async def _settled(
        self,
        submission: Submission,
        read_facts: Callable[[Submission], Awaitable[IssuanceContext]],
        key_generator: KeyGenerator | None = None,
    ) -> Credential:
        self.subject = f"device {submission.request.device_id}"
        for _ in range(ATTEMPTS_MAX):
            context = await read_facts(submission)
            try:
                return await self._settle(context, key_generator)
            except Conflict as conflict:
                if conflict.code == "serial-taken":
                    raise  # the board's, given by its station: reading again changes nothing
                continue  # a token was spent, a device suspended: the next reading shows which
        raise Unavailable("busy", "Others keep changing this device or token; nothing was done.", "Try again.")

    async def _first(self, submission: Submission) -> IssuanceContext:
        """The facts of a first enrollment.

        A certificate presented beside the credentials that are used must be valid all the same, and a device's
        certificate must be that of the device requested.
        """
        presented = await present(self.authority.registry, self.peer, submission, self.now, self.authority.read_idevid)
        holder = presented.holder
        grant = await authenticate(presented)
        if grant is not None:
            if not (isinstance(grant, ApprovalGrant) and grant.is_new):  # a key seen for the first time is nobody's
                self._acts_as(str(grant), repeats_freely=not isinstance(grant, StationGrant))
            self.claim = grant.claim if isinstance(grant, ClaimGrant) else None
            if holder is not None and holder.device is not None and holder.device.id != submission.request.device_id:
                raise Refused("not-your-identity", "The certificate presented belongs to another device.")
        elif holder is None:
            raise no_credentials()
        else:
            self._acts_as_holder(holder.credential)
            raise Refused("use-reenroll", "A device renews its own certificate by simplereenroll.")
        model = await self._model(submission, presented.facts, grant)
        return await self._context(submission.request, grant, presented.facts, model)

    def _acts_as(self, actor: str, *, repeats_freely: bool) -> None:
        self.actor, self.repeats_freely = actor, repeats_freely

    def _acts_as_holder(self, credential: Credential) -> None:
        free = credential.kind in (CredentialKind.DEVICE, CredentialKind.CLAIM)
        self._acts_as(f"{credential.kind} {credential.holder}", repeats_freely=free)

    async def _first_or_renewal(self, submission: Submission) -> IssuanceContext:
        """serverkeygen serves both: a device that presents its own certificate and no token renews."""
        registry, fingerprint = self.authority.registry, self.peer.fingerprint
        holder = await registry.holder_facts(fingerprint) if fingerprint else None
        is_device = holder is not None and holder.device is not None
        if submission.credentials is None and submission.current_names is not None and is_device:
            return await self._renewal(submission)
        return await self._first(submission)

    async def _renewal(self, submission: Submission, *, is_late: bool = False) -> IssuanceContext:
        """The facts of a renewal; with `is_late`, also of a certificate in its model's grace period."""
        registry = self.authority.registry
        identified = await identify(registry, self.peer, self.now, renews=True, in_grace=is_late)
        self._acts_as_holder(identified.credential)
        if identified.device is None or identified.model is None:
            raise Refused("not-a-device", "Only a device's own certificate is renewed by simplereenroll.")
        grace = identified.model.rules.renewal.grace if is_late else NO_GRACE
        grant = RenewalGrant(identified.credential, submission.current_names or Names(), grace)
        facts = await registry.enrollment_facts(
            identified.device.id,
            None,
            submission.request.key_sha256,
            presented=identified.credential.fingerprint,
            earned_by=str(grant),
        )
        if identified.device.id != submission.request.device_id:
            raise Refused("not-your-identity", "The certificate presented belongs to another device.")
        _must_match_label(submission.label, identified.model)
        if grant.credential.state is CredentialState.ISSUED:
            unearned = await ended_by_first_use(registry, grant.credential, facts.credentials)
            grant = structs.replace(grant, unearned=unearned)
        return await self._context(submission.request, grant, facts, identified.model)

    async def _context(
        self, request: EnrollmentRequest, grant: Grant, facts: EnrollmentFacts, model: Model
    ) -> IssuanceContext:
        # RFC 7030, 4.4.1: the key that signed a request for another key means nothing; the new one has no holder yet.
        uses = () if request.wants_key else facts.key_uses
        registry = self.authority.registry
        device = registry.revoked.as_revoked(request.device_id, facts.device)
        may_repeat = any(is_unused_for(request, credential) for credential in facts.credentials)
        rules = registry.revoked.distrusts(await registry.distrusts()) if may_repeat else ()
        return IssuanceContext(
            request, grant, device, model, facts.credentials, self.now, key_uses=uses, distrusts=rules
        )

    async def _model(self, submission: Submission, facts: EnrollmentFacts, grant: Grant) -> Model:
        """The device's model; for a new device, the one that the grant gives it."""
        model = facts.model
        if facts.device is None:
            name = grant.model_for_new_device(submission.request.device_id)
            if model is None or model.name != name:
                model = await self.authority.registry.model(name)
        if model is None:
            raise Refused("no-such-model", "There is no such model.")
        _must_match_label(submission.label, model)
        return model

    async def _settle(self, context: IssuanceContext, key_generator: KeyGenerator | None) -> Credential:
        """Raises: Conflict: the facts have changed since they were read; nothing was done."""
        authority = self.authority
        try:
            permit = permit_enrollment(context)
        except Pending:
            raise await wait_for_approval(authority.registry, context, authority.waiting, self._entry("")) from None
        if key_generator is not None:
            spki_der, key_sha256 = await key_generator.make(context.request.key_type)
            request = replace(context.request, spki_der=spki_der, key_sha256=key_sha256)
            context = structs.replace(context, request=request)
            permit = permit_enrollment(context)
        earned = issued_before(context)
        if earned is not None:
            await self._record(self._entry("ok", serial=earned.serial, repeated="yes"))
            return earned
        tags = await self._authorized_tags(context)
        credential = authority.issuer.issue(permit, self.now)
        entry = self._entry("ok", serial=credential.serial, grant=permit.grant)
        writes, events = _writes(context, credential, tags), _events(context, credential, tags)
        await authority.registry.commit(Change(entry, writes, events))
        return credential

    async def _authorized_tags(self, context: IssuanceContext) -> Tags:
        """The device's tags, with those that the model's webhook adds when it allows a first certificate.

        Raises: Refused (`webhook-denied`). Unreachable.
        """
        url = context.model.rules.admission.webhook
        if not url or context.grant.replaces is not None:
            return context.device.tags if context.device is not None else ()
        asked = (url, context.model.name, str(context.grant.path))
        detail = self.webhook_detail
        try:
            if asked not in self.verdicts:
                question = question_of(context, self.peer)
                detail.clear()
                detail["webhook"] = question.id
                self.verdicts[asked] = await verdict_of(self.authority.authorizer, url, question)
            verdict = self.verdicts[asked]
            if verdict.reason:
                detail["webhook_reason"] = verdict.reason
            allowed(verdict)
            return tags_with(context, verdict)
        except Unreachable as error:
            detail["webhook_problem"] = error.problem
            raise

    async def _audit_refusal(self, refusal: FleetError) -> FleetError:
        """The refusal holds whether or not its row could be written; what to answer."""
        registry = self.authority.registry
        if self.actor == NOBODY:  # refused before the client was authenticated, and before a webhook was asked
            await audit_refusal(registry, self.peer, self.now, self.action, self.subject, refusal)
            return refusal
        try:
            if self.claim is not None:
                try:
                    await misused(registry, self.claim, refusal.code, self.peer, self.now)
                except Refused as quarantined:
                    refusal = quarantined
            entry = self._entry(refusal.code)
            last_refusals_of(registry).note(entry)
            await self._record(entry)
        except Unavailable as error:
            refusal.add_note(f"The audit row could not be written: {error.message}")
        return refusal

    async def _record(self, entry: AuditEntry) -> None:
        """Write the audit row of an attempt that changed nothing: one a minute for actors who can repeat it at no cost.

        Raises: Unavailable.
        """
        registry = self.authority.registry
        if self.repeats_freely or entry.outcome == CERTIFICATE_BUDGET:
            await write_row(registry, entry)
        else:
            await registry.commit(Change(entry))

    def _entry(self, outcome: str, **detail: str) -> AuditEntry:
        details = {**self.webhook_detail, **detail}
        return AuditEntry(self.now, self.actor, self.action, self.subject, outcome, self.peer.address, details)


def _must_match_label(label: str | None, model: Model) -> None:
    """A barred device's former model is not known, so any label will do."""
    if label is None or model.name == BARRED_MODEL:
        return
    if not label_selects(label, model.name, model.rules):
        raise Refused("not-your-model", "The label in the path is neither the device's model nor its tenant.")


def _writes(context: IssuanceContext, credential: Credential, tags: Tags) -> tuple[Write, ...]:
    device = context.device
    writes: list[Write] = []
    if device is None:
        writes.append(Insert(new_device(context, credential.not_after, tags)))
    else:
        # From the state that was judged and no other: a device that was suspended or enrolled meanwhile has moved. So
        # it is written for an active device too.
        states = frozenset({device.state})
        full_at = full_again_at(device, context.model, context.now)
        budget = (device.budget_full_at, full_at) if full_at is not None else None
        expires_at = credential.not_after
        writes.append(MoveDevice(device.id, states, DeviceState.ACTIVE, expires_at=expires_at, budget=budget))
        if tags != device.tags:
            writes.append(TagDevice(device.id, tags, device.groups, device.revision + 1))  # after the move's
    writes += context.grant.writes(context)
    writes.append(AddCredential(credential))
    return tuple(writes)


def _events(context: IssuanceContext, credential: Credential, tags: Tags) -> tuple[Event, ...]:
    events = []
    if context.device is None or context.device.state is not DeviceState.ACTIVE:
        events.append(Event(EventKind.DEVICE_STATE, credential.holder, DeviceState.ACTIVE))
    if context.device is not None and tags != context.device.tags:
        events.append(Event(EventKind.DEVICE_TAGGED, credential.holder))
    if isinstance(grant := context.grant, RenewalGrant):
        # The presented certificate is now in use, which ends those before it.
        before = usable_before(context.credentials, grant.credential.fingerprint)
        for ended in (*before, *grant.unearned, *context.issued_unused()):
            events.append(Event(EventKind.CREDENTIAL_ENDED, credential.holder, ended.fingerprint.hex()))
    events.append(Event(EventKind.CREDENTIAL_ISSUED, credential.holder, credential.fingerprint.hex()))
    return tuple(events)
