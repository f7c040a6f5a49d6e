"""`enroll` and `renew` as a person calls them: with or without an agent running in the same home."""

import shlex
from collections.abc import Callable
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

LOCK_SECONDS_MAX = 20.0  # the agent may be trying a renewal of its own just now
RENEW_SECONDS_MAX = DEADLINE_SECONDS + 60.0  # the enrollment, the quiet before the proof, the proof


def enroll(
    config: AgentConfig,
    token: str,
    key_type: str,
    *,
    again: bool,
    now: datetime,
    label: str = "",
    said: Callable[[str], None] = lambda _: None,
) -> Identity:
    """Get a certificate by token; without one (""), by an operator's approval, which may take days: `said` hears how it
    stands, and `label` names the model of a device that the server does not know.

    It becomes current at once when there is no usable one; otherwise it has to prove itself: in the running agent, or
    at its next start.

    Raises: AgentError.
    """
    store = IdentityStore(config.home)
    current = store.current()
    usable = current is not None and not problem_of(config, current, now)
    if usable and not again:
        raise AgentError(
            "This device is enrolled already.", "Use `device-agent renew`, or `enroll --again` with a new token."
        )
    job = EnrollmentJob(config.home, "enroll", token, key_type, label=label)
    outcome = enroll_and_wait(job) if token else poll_until_decided(job, said)
    _raise_unless_ok(outcome)
    with store.lock(LOCK_SECONDS_MAX):
        candidate = store.candidate()
        if candidate is None:
            proven = store.current()
            if proven is None or proven == current:
                raise AgentError("The new certificate is not in its slot.", "Another command may have replaced it.")
            return proven  # the running agent was quicker
        if not usable:
            store.promote(candidate)
    try:
        ask(config.home, {"do": "prove"}, RENEW_SECONDS_MAX)
    except NotRunning:
        pass
    except (ClientError, TimeoutError):
        if usable:
            raise  # otherwise it is current already, and the agent goes on trying
    return store.current() or candidate


def renew(config: AgentConfig) -> Identity:
    """Renew now and prove the new certificate, in the running agent or here.

    Raises: AgentError: the working pair is then as it was.
    """
    try:
        ask(config.home, {"do": "renew"}, RENEW_SECONDS_MAX)
    except NotRunning:
        Runner(config, EventLog()).renew_once()
    except TimeoutError:
        raise AgentError("The agent has not finished renewing in time.", "See its log.") from None
    renewed = IdentityStore(config.home).current()
    if renewed is None:
        raise NotEnrolled(
            "There is no certificate.", f"Run: device-agent --home {shlex.quote(str(config.home))} enroll."
        )
    return renewed


def _raise_unless_ok(outcome: Outcome) -> None:
    if not outcome.ok:
        raise AgentError(outcome.message, outcome.advice)
