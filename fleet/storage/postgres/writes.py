"""Each Write as steps, each step one statement; and a Change as it goes to the database.

A step that must find a row and finds none is its Write's Conflict: there is no gap between looking and writing.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, assert_never

from fleet.domain.approval import DECIDED_FROM, RequestState
from fleet.domain.audit_log import NODE_LEVELS
from fleet.domain.changes import (
    AddAnchor,
    AddAnswer,
    AddClaim,
    AddCredential,
    AddDevice,
    AddModel,
    AddOperator,
    AddRequest,
    AddStation,
    AddToken,
    BindIdevid,
    Change,
    CollectRequest,
    CountTakeover,
    DecideRequest,
    DropAnchor,
    DropAnswers,
    DropAudit,
    DropCredentials,
    DropEvents,
    DropRequests,
    EndCredentials,
    EndUnused,
    ListDevices,
    MarkUsed,
    MoveDevice,
    QuarantineClaim,
    ReleaseClaim,
    RevokeClaim,
    RevokeCredentials,
    RevokeToken,
    SeeRequest,
    SetModel,
    SetStation,
    SpendClaim,
    SpendStation,
    SpendToken,
    TagDevice,
    TakeLease,
    Write,
)
from fleet.domain.errors import Conflict, Invalid
from fleet.storage import mapping, request_rows
from fleet.storage.postgres import admission
from fleet.storage.postgres.statements import NUMBER_OF


@dataclass(frozen=True, slots=True)
class Step:
    """One statement with its parameters; `otherwise` is what it means when it finds no row, None when that is fine."""

    statement: str
    parameters: tuple[Any, ...]
    otherwise: Conflict | None = None


def steps_of(write: Write) -> Iterator[Step]:
    """What `write` is made of, in order."""
    match write:
        case AddModel(model=model):
            taken = Conflict("model-exists", f"Model {model.name} exists already.", "Change it with: fleet model set.")
            yield Step("add_model", mapping.model_row(model), taken)
        case SetModel(model=model):
            none = Conflict("no-such-model", f"There is no model {model.name}.", "Add it with: fleet model add.")
            yield Step("has_model", (model.name,), none)
            yield Step("set_model", mapping.model_row(model), changed_meanwhile(f"Model {model.name}"))
        case AddDevice(device=device):
            taken = Conflict("device-exists", f"Device {device.id} exists already.")
            yield Step("add_device", mapping.device_row(device), taken)
            yield from (Step("add_tag", row) for row in mapping.tag_rows(device))
        case MoveDevice():
            yield from _moving(write)
        case TagDevice():
            yield from _tagging(write)
        case AddCredential(credential=credential):
            taken = Conflict("key-taken", "The key is another holder's, or was revoked.", "Make a new key.")
            yield Step("key_is_free", (credential.key_sha256, credential.holder, credential.kind.value), taken)
            known = Conflict("credential-exists", f"A certificate with serial {credential.serial} is recorded already.")
            yield Step("add_credential", mapping.credential_row(credential), known)
        case MarkUsed(fingerprint=fingerprint):
            ended = Conflict("credential-ended", "The certificate is not usable any more.", "Enroll again.")
            yield Step("use_credential", (fingerprint,), ended)
            yield Step("supersede_older", (fingerprint,))
        case EndUnused(kind=kind, holder=holder, grant=grant, newest=newest):
            answered = Conflict("answered-already", f"{holder} has been given another certificate meanwhile.")
            yield Step("newest_unused_is", (holder, kind, grant, newest), answered)
            yield Step("end_unused", (holder, kind, grant))
        case EndCredentials(fingerprints=fingerprints):
            for fingerprint in fingerprints:
                yield Step("end_credential", (fingerprint,))
        case RevokeCredentials(kind=kind, holder=holder):
            yield Step("revoke_credentials", (holder, kind))
        case AddToken(token=token):
            taken = Conflict("token-exists", f"Token {token.id} exists already.")
            yield Step("add_token", mapping.token_row(token), taken)
        case SpendToken(token_id=token_id):
            spent = Conflict("token-spent", "The token is revoked or has no use left.", "Ask for a new one.")
            yield Step("spend_token", (token_id,), spent)
        case RevokeToken(token_id=token_id, at=at):
            gone = Conflict("token-gone", f"Token {token_id} does not exist or is revoked already.")
            yield Step("revoke_token", (token_id, mapping.micros(at)), gone)
        case AddStation(station=station):
            taken = Conflict("station-exists", f"Station {station.name} exists already.", "Choose another name.")
            yield Step("add_station", mapping.station_row(station), taken)
        case AddOperator(operator=operator):
            taken = Conflict("operator-exists", f"Operator {operator.name} exists already.", "Choose another name.")
            yield Step("add_operator", mapping.operator_row(operator), taken)
        case AddAnswer(answer=answer):
            used = Conflict("idempotency-key-used", "The idempotency key has been used already.", "Take a new one.")
            yield Step("add_answer", mapping.answer_row(answer), used)
        case AddRequest() | SeeRequest() | DecideRequest() | CollectRequest() | DropRequests():
            yield from _requesting(write)
        case ListDevices() | SetStation() | SpendStation() | AddAnchor() | DropAnchor() | BindIdevid():
            yield from (Step(*each) for each in admission.steps_of(write))
        case AddClaim() | SpendClaim() | CountTakeover() | QuarantineClaim() | ReleaseClaim() | RevokeClaim():
            yield from (Step(*each) for each in admission.steps_of(write))
        case DropAnswers() | DropCredentials() | DropAudit() | DropEvents():
            yield from _dropping(write)
        case TakeLease(lease=lease, now=now, by_force=by_force):
            held = mapping.lease_held(lease)
            yield Step("take_lease", (*mapping.lease_row(lease), mapping.micros(now), int(by_force)), held)
        case _:
            assert_never(write)


def changed_meanwhile(what: str) -> Conflict:
    return Conflict("changed-meanwhile", f"{what} has been changed since it was read.", "Read it again and retry.")


def _moving(write: MoveDevice) -> Iterator[Step]:
    id_, to, states = write.device_id, write.to, ",".join(sorted(state.value for state in write.allowed))
    moved = Conflict("device-moved", f"Device {id_} is not in a state from which it can become {to}.")
    if write.revision is not None:
        yield Step("device_may_move", (id_, states), moved)
        moved = changed_meanwhile(f"Device {id_}")
    expires_at = None if write.expires_at is None else mapping.micros(write.expires_at)
    yield Step("move_device", (to.value, expires_at, id_, write.revision, states), moved)


def _tagging(write: TagDevice) -> Iterator[Step]:
    id_ = write.device_id
    yield Step("has_device", (id_,), Conflict("no-such-device", f"There is no device {id_}."))
    tags, groups = mapping.listing(write.tags), mapping.listing(write.groups)
    yield Step("drop_tags", (id_,))
    yield Step("tag_device", (id_, tags, groups, write.revision), changed_meanwhile(f"Device {id_}"))
    for key, value in (*write.tags, *(("", group) for group in write.groups)):
        yield Step("add_tag", (key, value, id_))


def _dropping(write: DropAnswers | DropCredentials | DropAudit | DropEvents) -> Iterator[Step]:
    match write:
        case DropAnswers(before=before):
            yield Step("drop_answers", (mapping.micros(before),))
        case DropCredentials(fingerprints=fingerprints, now=now):
            for fingerprint in fingerprints:
                kept = Conflict("credential-kept", "A certificate that has not expired is not forgotten.")
                yield Step("credential_has_ended", (fingerprint, mapping.micros(now)), kept)
                yield Step("keep_revoked_key", (fingerprint,))
                yield Step("drop_credential", (fingerprint,))
        case DropAudit(upto=upto):
            whole = Conflict("audit-kept", f"The audit up to row {upto} is not sealed, or is not there any more.")
            yield Step("drop_audit", (upto, 1 << NODE_LEVELS[0]), whole)
        case DropEvents(upto=upto):
            yield Step("drop_events", (upto,))


def _requesting(
    write: AddRequest | SeeRequest | DecideRequest | CollectRequest | DropRequests,
) -> Iterator[Step]:
    match write:
        case AddRequest(request=request, limits=limits):
            caps = (limits.requests_max, limits.per_model_max, limits.per_address_max)
            yield Step("drop_requests", (mapping.micros(request.first_seen),))
            parameters = (*request_rows.request_row(request), *caps)
            yield Step("add_request", parameters, request_rows.not_added(request))
        case SeeRequest(request_id=id_, asked=asked, at=at, address=address):
            yield Step("see_request", (id_, asked, mapping.micros(at), address))
        case DecideRequest(request_id=id_, to=to, by=by, reason=reason, revision=revision):
            decided_at, expires_at = mapping.micros(write.at), mapping.micros(write.expires_at)
            states = ",".join(sorted(DECIDED_FROM[to]))
            if to is RequestState.APPROVED:
                yield Step("no_other_is_approved", (id_, decided_at), request_rows.decided_already(write))
            yield Step("request_may_move", (id_, decided_at, states), request_rows.not_decided(write))
            decision = (id_, to.value, by, decided_at, reason, expires_at, revision)
            yield Step("decide_request", decision, changed_meanwhile(f"Request {id_}"))
            if to is RequestState.APPROVED:
                yield Step("deny_other_requests", (id_, by, decided_at, f"request {id_} was approved", expires_at))
        case CollectRequest(request_id=id_):
            yield Step("collect_request", (id_,), request_rows.not_collected(id_))
        case DropRequests(now=now):
            yield Step("drop_requests", (mapping.micros(now),))


def names_of(write: Write) -> tuple[str, ...]:
    """What `write` looks at before it decides, by name: two that share a name must not be under way at once.

    The database's own row locks settle the rest. Taken for a whole batch at once and in one order, these locks also
    keep two batches from waiting for each other.
    """
    match write:
        case AddModel(model=model) | SetModel(model=model):
            return (f"model {model.name}",)
        case AddDevice(device=device):
            return (f"device {device.id}",)
        case MoveDevice(device_id=device_id) | TagDevice(device_id=device_id):
            return (f"device {device_id}",)
        case AddCredential(credential=credential):
            return f"{credential.kind.value} {credential.holder}", f"key {credential.key_sha256.hex()}"
        case EndUnused(kind=kind, holder=holder, newest=newest):
            return (f"{kind} {holder}", *((f"credential {newest.hex()}",) if newest else ()))
        case EndCredentials(fingerprints=fingerprints):
            return tuple(f"credential {fingerprint.hex()}" for fingerprint in fingerprints)
        case RevokeCredentials(kind=kind, holder=holder):
            return (f"{kind} {holder}",)
        case MarkUsed(fingerprint=fingerprint):
            return (f"credential {fingerprint.hex()}",)
        case AddToken(token=token):
            return (f"token {token.id}",)
        case SpendToken(token_id=token_id) | RevokeToken(token_id=token_id):
            return (f"token {token_id}",)
        case AddStation(station=station):
            return (f"station {station.name}",)
        case AddOperator(operator=operator):
            return (f"operator {operator.name}",)
        case AddAnswer(answer=answer):
            return (f"answer {answer.key} {answer.actor}",)
        case AddRequest() | SeeRequest() | DecideRequest() | CollectRequest() | DropRequests():
            return ("the requests",)  # counted all together, and those for one device id decided together
        case ListDevices() | SetStation() | SpendStation() | AddAnchor() | DropAnchor() | BindIdevid():
            return admission.names_of(write)
        case AddClaim() | SpendClaim() | CountTakeover() | QuarantineClaim() | ReleaseClaim() | RevokeClaim():
            return admission.names_of(write)
        case DropAnswers() | DropCredentials() | DropAudit() | DropEvents():
            return ("the clean-up",)
        case TakeLease(lease=lease):
            return (f"lease {lease.name}",)
        case _:
            assert_never(write)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A Change as it goes over the wire."""

    change: Change
    steps: tuple[Step, ...]
    text: str
    """The steps as JSON: a list of [statement, must find a row, parameters]."""
    locks: frozenset[int]

    def outcome(self, answer: str | None) -> Exception | None:
        """What the batch's answer for this Change means."""
        if answer is None:
            return None
        kind, _, rest = answer.partition(" ")
        if kind == "step":
            return self.steps[int(rest)].otherwise
        return Conflict("against-the-rules", f"The registry's own rules forbid this: {rest}.")


def prepared(change: Change) -> Prepared:
    """Raises: ValueError, Invalid (`bad-value`): a text in it cannot be stored."""
    steps = tuple(step for write in change.writes for step in steps_of(write))
    entry = change.audit
    _must_be_text(entry.actor, entry.action, entry.subject, entry.outcome, entry.address)
    for event in change.events:
        _must_be_text(event.kind, event.subject, event.detail)
    text = json.dumps(
        [
            (NUMBER_OF[step.statement], step.otherwise is not None, [_plain(one) for one in step.parameters])
            for step in steps
        ],
        ensure_ascii=False,
        separators=(",", ":"),
    )
    names = frozenset(name for write in change.writes for name in names_of(write))
    return Prepared(change, steps, text, frozenset(map(_lock_of, names)))


def _must_be_text(*texts: str) -> None:
    for text in texts:
        if "\0" in text:
            raise Invalid("bad-value", "A text holds the character NUL, which PostgreSQL cannot store.")
        text.encode()


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        _must_be_text(value)
    return value.hex() if isinstance(value, bytes) else value


def _lock_of(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big", signed=True)
