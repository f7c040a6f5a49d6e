"""The commands `enroll` and `renew`, with or without an agent running in the same home."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from device_agent.agent_config import AgentConfig
from device_agent.control import ask
from device_agent.enrollment import DEADLINE_SECONDS, EnrollmentJob, Outcome, enroll_and_wait
from device_agent.errors import AgentError, NotEnrolled, NotRunning
from device_agent.event_log import EventLog
from device_agent.health import problem_of
from device_agent.identity_store import Identity, IdentityStore
from device_agent.pending_enrollment import poll_until_decided
from device_agent.runner import Runner
from fleet.est_client.errors import ClientError

LOCK_SECONDS_MAX = 20.0  # a running agent may be renewing just now
RENEW_SECONDS_MAX = DEADLINE_SECONDS + 60.0  # the enrollment, the drain of messages in flight, the proof


@dataclass(frozen=True, slots=True)
class EnrollmentRequest:
    key_type: str
    token: str = field(default="", repr=False)
    """A one-time token; "" asks for an operator's approval, which may take days."""
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

    Raises: ClientError.
    """
    store = IdentityStore(config.home)
    current = store.current()
    usable = current is not None and not problem_of(config, current, now)
    if usable and not request.again:
        raise AgentError(
            "This device is already enrolled.", "Use `device-agent renew`, or `enroll --again` with a new token."
        )
    job = EnrollmentJob(config.home, "enroll", request.token, request.key_type, label=request.label)
    outcome = enroll_and_wait(job) if request.token else poll_until_decided(job, report)
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


def renew(config: AgentConfig) -> Identity:
    """Renew now and prove the new certificate, in the running agent or here.

    Raises: ClientError; the working certificate and key are unchanged then.
    """
    try:
        ask(config.home, {"do": "renew"}, RENEW_SECONDS_MAX)
    except NotRunning:
        Runner(config, EventLog()).renew_once()
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
