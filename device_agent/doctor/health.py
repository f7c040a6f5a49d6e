"""Health of a device: its files, fully checked, and its running agent's status. Needs `cryptography`."""

import shlex
from dataclasses import asdict, dataclass
from datetime import datetime

from cryptography import x509

from device_agent import times
from device_agent.apps.control import ask
from device_agent.config.agent_config import AgentConfig
from device_agent.enrollment.pending_enrollment import pending_note
from device_agent.errors import Busy, NotRunning
from device_agent.hooks.deployment_marks import hook_states, read_marks
from device_agent.store import last_refusal
from device_agent.store.atomic_files import read_file
from device_agent.store.bootstrap import bootstrap_of
from device_agent.store.device_key import load_key, spki_der
from device_agent.store.identity_store import Identity, IdentityStore
from device_agent.store.last_refusal import LastRefusal
from device_agent.store.root_rollover import load_anchors
from fleet.est_client.certificate_checks import check_certificate
from fleet.est_client.errors import ClientError

ASK_SECONDS_MAX = 5.0

ENROLLED = "enrolled"
EXPIRED = "expired"
INVALID = "invalid"
"""There is a certificate, but it cannot be used: another key, name or CA."""
UNPROVEN = "unproven"
"""The only certificate has not been used yet."""
LOCKED_OUT = "locked out"
"""The server refuses every credential that is left: an operator has to act."""
REFUSED = "refused"
"""There is a certificate, and the server does not accept it."""
NOT_ENROLLED = "not enrolled"
WAITING = "waiting for approval"
"""Not enrolled; the server has accepted the request."""


@dataclass(frozen=True, slots=True)
class Health:
    device_id: str
    state: str
    """One of the constants above."""
    problem: str
    """Why it is not `enrolled`; "" if it is."""
    serial: str | None
    not_before: str | None
    not_after: str | None
    days_left: float | None
    slots: dict[str, str]
    key_store: str
    """Where its private keys are kept: "file", "tpm2" or "pkcs11"."""
    running: bool
    connected: bool
    last_error: str
    hooks: dict[str, str]
    """By name: what each has done with the certificate in use."""
    last_refusal: dict[str, object]
    """Since when the server refuses this device, why, and what to do; {} if it does not."""
    agent: dict[str, object]
    """Status of the running agent: pid, protocol, waiting, renewal_due_at, ...; {} if none runs."""

    @property
    def healthy(self) -> bool:
        return self.state == ENROLLED and (self.connected or not self.running)


def examine(config: AgentConfig, now: datetime) -> Health:
    """The device's health now.

    Raises: BadConfig if the CA file cannot be used.
    """
    store = IdentityStore(config.home)
    current, candidate = store.current(), store.candidate()
    shown = current or candidate
    state, problem = _judge(config, current, candidate, now)
    try:
        agent = ask(config.home, {"do": "status"}, ASK_SECONDS_MAX)
    except NotRunning:
        agent = {}
    except Busy as error:
        agent = {"last_error": error.message}
    except TimeoutError:
        agent = {"last_error": f"The agent is running, and has not answered within {ASK_SECONDS_MAX:g} seconds."}
    running = bool(agent)
    agent.pop("ok", None)
    connected = bool(agent.pop("connected", False))
    refusal = None if connected else last_refusal.read(config.home)
    if refusal is not None:
        state, problem = _judge_refusal(refusal, state, problem)
    return Health(
        device_id=config.device_id,
        state=state,
        problem=problem,
        serial=shown.certificate.serial if shown else None,
        not_before=shown.certificate.not_before.isoformat() if shown else None,
        not_after=shown.certificate.not_after.isoformat() if shown else None,
        days_left=round((shown.certificate.not_after - now).total_seconds() / 86400, 3) if shown else None,
        slots=store.slots(),
        key_store=config.key_store.kind,
        running=running,
        connected=connected,
        last_error=str(agent.pop("last_error", "")),
        hooks=hook_states(config.hooks, read_marks(config.home), current.certificate.fingerprint if current else None),
        last_refusal=asdict(refusal) if refusal else {},
        agent=agent,
    )


def _judge_refusal(refusal: LastRefusal, state: str, problem: str) -> tuple[str, str]:
    why = f"{refusal.message} {refusal.advice}".rstrip()
    if refusal.final:
        return LOCKED_OUT, f"The server refuses every credential that this device has. {why}"
    return (REFUSED, f"The server refuses this device: {why}") if state == ENROLLED else (state, problem)


def _judge(config: AgentConfig, current: Identity | None, candidate: Identity | None, now: datetime) -> tuple[str, str]:
    command = f"device-agent --home {shlex.quote(str(config.home))}"
    if current is None and candidate is None and (asked := pending_note(config.home)):
        return WAITING, asked
    if current is None and candidate is None and bootstrap_of(config.home) is not None:
        return (
            NOT_ENROLLED,
            f"There is no certificate; the agent enrolls with the bootstrap credential. Run: {command} run.",
        )
    if current is None and candidate is None:
        return NOT_ENROLLED, f"There is no certificate yet. Run: {command} enroll."
    identity = current or candidate
    assert identity  # noqa: S101 - one of them is there
    if now >= identity.lifetime.not_after:
        return EXPIRED, f"The certificate expired at {times.shown(identity.certificate.not_after)}."
    problem = problem_of(config, identity, now)
    if problem:
        return INVALID, problem
    if current is None:
        return UNPROVEN, f"The certificate has not been used yet. Run: {command} run."
    return ENROLLED, ""


def problem_of(config: AgentConfig, identity: Identity, now: datetime) -> str:
    """Why this identity cannot be used, or "". Checks the files themselves, not meta.json."""
    try:
        certificate, *chain = x509.load_pem_x509_certificates(read_file(identity.certificate_file))
        check_certificate(
            certificate,
            spki_der=spki_der(load_key(identity.key_file, config.key_store)),
            device_id=config.device_id,
            intermediates=chain,
            anchors=load_anchors(config.ca_file),
            now=now,
        )
    except ClientError as error:
        return error.message
    except (ValueError, OSError) as error:
        return f"A file of the identity cannot be read: {error}."
    return ""
