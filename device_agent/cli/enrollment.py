"""A new certificate for the commands `enroll` and `renew`, with or without an agent running in the same home."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from device_agent.apps.control import ask
from device_agent.config.agent_config import AgentConfig
from device_agent.config.spool import NO_SPOOL
from device_agent.doctor.health import problem_of
from device_agent.enrollment.enrollment import (
    DEADLINE_SECONDS,
    EnrollmentJob,
    Outcome,
    enroll_and_wait,
)
from device_agent.enrollment.pending_enrollment import poll_until_decided
from device_agent.errors import AgentError, KeyStoreLost, NotEnrolled, NotRunning
from device_agent.log.event_log import EventLog
from device_agent.loop.runner import Runner
from device_agent.store.atomic_files import held_lock, read_capped
from device_agent.store.bootstrap import FILE_SIZE_MAX, keep_certificate, keep_token
from device_agent.store.identity_store import Identity, IdentityStore
from device_agent.store.locks import ENROLL_LOCK
from fleet.est_client.errors import ClientError
from fleet.est_client.tls import client_context

LOCK_SECONDS_MAX = 20.0  # a running agent may be renewing just now
RENEW_SECONDS_MAX = DEADLINE_SECONDS + 60.0  # the enrollment, the drain of messages in flight, the proof


@dataclass(frozen=True, slots=True)
class EnrollmentRequest:
    key_type: str
    token: str = field(default="", repr=False)
    """A one-time token; "" asks for an operator's approval, which may take days."""
    files: tuple[Path, Path] | None = None
    """Certificate chain and key of the manufacturer (IDevID) or of a claim, PEM, instead of a token."""
    keeps: bool = False
    """Keep token or files as the bootstrap credential."""
    label: str = ""
    """The model of a device that is not registered yet."""
    again: bool = False
    """Even if the device has a valid certificate."""


def enroll(
    config: AgentConfig, request: EnrollmentRequest, now: datetime, report: Callable[[str], None] = lambda _: None
) -> Identity:
    """Get a certificate, and return it. `report` is given the progress of an approval.

    It becomes current at once if there is no valid one. Otherwise it is proven first: by the running agent, or at the
    agent's next start.

    Raises: ClientError, of which Busy while another one works in this home: each would spend a token, and only the last
    certificate be kept.
    """
    with held_lock(config.home / ENROLL_LOCK, "Another enrollment works in this home.", "Wait for it, or end it."):
        return _enroll(config, request, now, report)


def _enroll(config: AgentConfig, request: EnrollmentRequest, now: datetime, report: Callable[[str], None]) -> Identity:
    store = IdentityStore(config.home)
    current = store.current()
    usable = current is not None and not problem_of(config, current, now)
    if usable and not request.again:
        raise AgentError(
            "This device is already enrolled.", "Use `device-agent renew`, or `enroll --again` with a new token."
        )
    waiting = store.candidate()
    if current is None and waiting is not None and not request.again and not problem_of(config, waiting, now):
        return _take(store, waiting)  # an interrupted enrollment had stored it: the token is spent
    files = request.files
    if files is not None:
        client_context(config.ca_file, files)  # a pair that cannot be used is not kept
    if request.keeps:
        _keep(config.home, request)  # first: a power loss from here on needs no person
    job = EnrollmentJob(
        config.home,
        "enroll",
        request.token,
        request.key_type,
        files=(str(files[0]), str(files[1])) if files else None,
        label=request.label,
    )
    outcome = enroll_and_wait(job) if request.token or files else poll_until_decided(job, report)
    _raise_unless_ok(outcome)
    with store.lock(LOCK_SECONDS_MAX):
        candidate = store.candidate()
        if candidate is None:
            proven = store.current()
            if proven is None or proven == current:
                raise AgentError("The new certificate is not in its slot.", "Another command may have replaced it.")
            return proven  # the running agent has promoted it already
        if not usable:
            store.promote(candidate)
    try:
        ask(config.home, {"do": "prove"}, RENEW_SECONDS_MAX)
    except NotRunning:
        pass
    except (ClientError, TimeoutError):
        if usable:
            raise  # otherwise it is current already, and the agent keeps trying
    return candidate


def _keep(home: Path, request: EnrollmentRequest) -> None:
    if request.files is not None:
        chain, key = request.files
        keep_certificate(home, read_capped(chain, FILE_SIZE_MAX), read_capped(key, FILE_SIZE_MAX))
    else:
        keep_token(home, request.token)


def _take(store: IdentityStore, candidate: Identity) -> Identity:
    with store.lock(LOCK_SECONDS_MAX):
        if store.candidate() == candidate:
            store.promote(candidate)
    return candidate


def renew(config: AgentConfig) -> Identity:
    """Renew now and prove the new certificate, in the running agent or here.

    Raises: ClientError; the working certificate and key are unchanged then.
    """
    try:
        ask(config.home, {"do": "renew"}, RENEW_SECONDS_MAX)
    except NotRunning:
        # Without the spool: its messages wait for `run`.
        try:
            Runner(replace(config, spool=NO_SPOOL), EventLog()).renew_once()
        except KeyStoreLost as error:
            raise AgentError(str(error)) from error
    except TimeoutError:
        raise AgentError("The agent did not finish the renewal in time.", "See its log.") from None
    renewed = IdentityStore(config.home).current()
    if renewed is None:
        raise NotEnrolled(
            "There is no certificate.", f"Run: device-agent --home {shlex.quote(str(config.home))} enroll."
        )
    return renewed


def _raise_unless_ok(outcome: Outcome) -> None:
    if not outcome.ok:
        raise AgentError(outcome.message, outcome.advice)
