"""`python -m device_agent.enroll_child`: the child process of one enrollment.

Generates the key, requests the certificate over EST, checks it and writes the candidate slot. So the long-lived agent
never loads `cryptography`, and a hung request is ended by killing a process. The job is one JSON object on stdin, the
outcome one on stdout: a token is never in an argument list or an environment.
"""

import shlex
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from device_agent.config.agent_config import AgentConfig, read_config
from device_agent.enrollment.enrollment import EnrollmentJob, Outcome
from device_agent.enrollment.trust_updates import follow_trust
from device_agent.errors import NotEnrolled
from device_agent.link.clock import TOLERANCE, DeviceClock, device_clock
from device_agent.link.est_access import first_to_answer
from device_agent.log.event_log import EventLog
from device_agent.managed.report import send_report
from device_agent.store.atomic_files import read_file
from device_agent.store.bootstrap import bootstrap_of
from device_agent.store.device_key import (
    PrivateKey,
    candidate_key,
    certificate_info,
    device_subject,
    fingerprint,
    load_key,
    spki_der,
)
from device_agent.store.hardware_key import KeyOfAnother
from device_agent.store.identity_store import Identity, IdentityStore
from device_agent.store.key_store import FILE
from device_agent.store.root_rollover import load_anchors
from fleet.est_client.arguments import AGENT_KEY_TYPES
from fleet.est_client.certificate_checks import check_certificate, check_has_begun, find_chain
from fleet.est_client.client import BoundCsr, EstClient, Policy
from fleet.est_client.errors import (
    BadConfig,
    ClientError,
    EstAlerted,
    EstBusy,
    EstError,
    EstRefused,
)
from fleet.wire.csr import build_csr
from fleet.wire.errors import WireError
from fleet.wire.keys import key_type_of
from fleet.wire.names import names_of_certificate

LOCK_SECONDS_MAX = 20.0  # a running agent may be renewing just now
ENDED = ("certificate-revoked", "certificate-expired")
"""Codes with which the fleet's EST server refuses a certificate permanently."""
OUT_OF_SERVICE = ("device-revoked", "device-retired")
"""Codes with which it refuses a device permanently."""
UNRENEWABLE = (
    *ENDED,
    *OUT_OF_SERVICE,
    *("certificate-superseded", "certificate-unknown", "certificate-distrusted", "certificate-ended"),
)
"""Codes with which it refuses to renew a certificate, whatever becomes of the device."""


def main() -> None:
    """Read the job, run it, print the outcome; exit 0 if a candidate is in place."""
    job = EnrollmentJob.from_json(sys.stdin.read())
    # The parent's deadline, enforced here too in case the parent is killed.
    signal.alarm(int(job.deadline_seconds) + 1)
    outcome = outcome_of(job, datetime.now(UTC))
    print(outcome.to_json(), flush=True)
    raise SystemExit(0 if outcome.ok else 1)


def outcome_of(job: EnrollmentJob, now: datetime) -> Outcome:
    """Do the job; its errors are outcomes."""
    try:
        if job.operation == "report":
            return send_report(job)
        return suggested(job) if job.operation == "window" else Outcome(True, perform(job, now).slot)
    except EstError as error:
        return Outcome(
            ok=False,
            message=error.message,
            advice=_next_step(job, error) or error.advice,
            refused=isinstance(error, EstRefused),
            code=error.reason_code if isinstance(error, EstRefused) else "",
            ended=job.operation == "reenroll" and _is_for_ever(error),
            retry_after_seconds=error.retry_after_seconds if isinstance(error, EstBusy) else 0.0,
            pending=isinstance(error, EstBusy) and error.pending,
        )
    except ClientError as error:
        ended = job.operation == "reenroll" and isinstance(error, KeyOfAnother)
        return Outcome(ok=False, message=error.message, advice=error.advice, ended=ended)
    except OSError as error:
        return Outcome(ok=False, message=f"The home cannot be written: {error}.", advice="Check the disk.")


def _is_for_ever(error: EstError) -> bool:
    if isinstance(error, EstAlerted):
        return True  # the next credential may serve, and nothing is lost by trying it: it is not refused, so no delay
    # Without a status: after the handshake, where a server checks the certificate's dates and issuer.
    return isinstance(error, EstRefused) and (error.status == 0 or error.reason_code in UNRENEWABLE)


def _next_step(job: EnrollmentJob, error: EstError) -> str:
    """What helps where renewing again does not; "" if nothing is known."""
    code = error.reason_code if isinstance(error, EstRefused) else ""
    command = f"device-agent --home {shlex.quote(str(job.home))}"
    if code == "device-suspended":
        return "The agent connects by itself once the fleet's operator has resumed it: fleet device resume."
    if code in OUT_OF_SERVICE:
        return (
            "No token brings it back: register the hardware under a new id, then: "
            f"{command} reset --all, and init and enroll with that id."
        )
    if job.operation == "reenroll" and code in ENDED:
        return f"Ask for a new token, then: {command} enroll --again."
    return ""


def perform(job: EnrollmentJob, now: datetime) -> Identity:
    """Enroll or re-enroll, and store a candidate in the spare slot.

    Raises: EstError, Busy, NotEnrolled, BadConfig, StoreDamaged, OSError.
    """
    config = read_config(job.home)
    job = _with_bootstrap(job)
    store = IdentityStore(job.home)
    with store.lock(LOCK_SECONDS_MAX):
        current, waiting = store.current(), store.candidate()
        if job.operation != "enroll" and waiting is not None and waiting.certificate.fingerprint != job.replaces:
            return waiting  # stored by another process, and not tried yet: never overwritten
        if job.renews and current is not None and current.certificate.fingerprint != job.renews:
            return current  # another process has replaced it while we waited for the lock
        renewed = current if job.operation != "enroll" else None
        if job.operation == "reenroll" and current is not None and config.key_store.kind != FILE:
            load_key(current.key_file, config.key_store)  # a key of another TPM is named before one is generated
        key_type = job.key_type if renewed is None else _key_type_like(renewed, job.key_type)
        slot, key = candidate_key(store, key_type, config.key_store)
        # First the chain, then the certificate: a one-time token is not spent on an unusable answer.
        clock = device_clock(job.home, lambda: now)
        client_of = partial(_client, config, job, current, clock)
        url, client, intermediates = first_to_answer(config, clock, client_of, lambda client: client.cacerts())
        now = clock.now()
        try:
            if job.operation == "reenroll" and current is not None:
                certificate = _asked(client, client.simplereenroll, _csr_like(key, current))
            else:
                subject = device_subject(config.device_id, config.hardware_serial)
                enroll = partial(client.simpleenroll, label=job.label or None)
                certificate = _asked(client, enroll, partial(build_csr, key, subject, ()))
        except EstBusy as error:
            if error.pending:  # our own message: the operator compares this fingerprint with the server's
                error.message = f"Waiting for approval. This device's key is {fingerprint(key)}."
            raise
        except EstRefused as error:
            if error.status in (400, 403):
                store.clear(slot)  # this key will not be certified: the next attempt generates another
            raise
        anchors = load_anchors(config.ca_file)
        if not find_chain(certificate, intermediates, anchors, now)[1]:
            intermediates = _chain_for_us(replace(config, est_url=url), job, certificate, store.key_file(slot), clock)
        chain = check_certificate(
            certificate,
            spki_der=spki_der(key),
            device_id=config.device_id,
            intermediates=intermediates,
            anchors=anchors,
            now=now,
        )
        if clock.reading().is_set:
            check_has_begun(certificate, now + TOLERANCE)
        follow_trust(config, client, intermediates, (certificate, *chain), now)
        chain_pem = b"".join(each.public_bytes(Encoding.PEM) for each in (certificate, *chain))
        return store.complete(slot, chain_pem, certificate_info(certificate, config.device_id, now))


def _with_bootstrap(job: EnrollmentJob) -> EnrollmentJob:
    """Raises: NotEnrolled."""
    if job.operation != "recover":
        return job
    bootstrap = bootstrap_of(job.home)
    if bootstrap is None:
        raise NotEnrolled("There is no bootstrap credential in the home.", "Ask for a token, and enroll with it.")
    files = bootstrap.files
    return replace(job, token=bootstrap.token, files=(str(files[0]), str(files[1])) if files else None)


def suggested(job: EnrollmentJob) -> Outcome:
    """The renewal window that the server suggests for the certificate `job.replaces`.

    Raises: EstError, BadConfig.
    """
    config = read_config(job.home)
    clock = device_clock(job.home)
    seconds = job.deadline_seconds / (2 + len(config.est_urls))
    *_, (window, again_seconds) = first_to_answer(
        config,
        clock,
        lambda url: EstClient(url, config.ca_file, policy=_policy(config, clock, seconds)),
        lambda client: client.renewal_info(job.replaces),
    )
    return Outcome(
        ok=True,
        slot=job.replaces,
        retry_after_seconds=again_seconds,
        window=tuple(at.isoformat() for at in window) if window else (),
    )


def _policy(config: AgentConfig, clock: DeviceClock, timeout_seconds: float) -> Policy:
    check_time, at = clock.judges_dates()
    return Policy(timeout_seconds, patience_seconds=0, check_time=check_time, at=at, pins=config.pins)


def _client(
    config: AgentConfig, job: EnrollmentJob, current: Identity | None, clock: DeviceClock, url: str
) -> EstClient:
    if job.operation == "reenroll" and current is None:
        raise NotEnrolled("There is no certificate to renew.", "Enroll first: device-agent enroll.")
    patience_seconds = job.deadline_seconds / 2 if job.token or job.files or job.operation == "reenroll" else 0.0
    return EstClient(
        url,
        config.ca_file,
        certificate=current.files if job.operation == "reenroll" and current else job.files,
        basic=(config.device_id, job.token) if job.token else None,
        policy=replace(
            _policy(config, clock, min(30.0, job.deadline_seconds / len(config.est_urls))),
            patience_seconds=patience_seconds if job.patience_seconds is None else job.patience_seconds,
            report=partial(_report, job),
        ),
    )


def _report(job: EnrollmentJob, text: str) -> None:
    """Print a wait to standard error: for the person at `enroll`, or as a line of the agent's log."""
    if job.operation == "enroll":
        print(text, file=sys.stderr, flush=True)
    else:
        EventLog().event("renewal-waiting", reason=text)


def _chain_for_us(
    config: AgentConfig, job: EnrollmentJob, certificate: x509.Certificate, key_file: Path, clock: DeviceClock
) -> list[x509.Certificate]:
    """The CA certificates for a client with `certificate`: before it authenticated, a server of several CAs may have
    answered with another one's. [] on failure: the check that follows reports what is missing.
    """
    with tempfile.NamedTemporaryFile(suffix=".pem") as file:
        file.write(certificate.public_bytes(Encoding.PEM))
        file.flush()
        try:
            client = EstClient(
                config.est_url,
                config.ca_file,
                certificate=(file.name, key_file),
                policy=_policy(config, clock, min(30.0, job.deadline_seconds)),
            )
            return client.cacerts()
        except ClientError:
            return []


def _asked(
    client: EstClient, operation: Callable[[bytes | BoundCsr], x509.Certificate], csr: BoundCsr
) -> x509.Certificate:
    """The certificate for `csr`, which is bound to its connection if the server requires it (RFC 7030, 3.5).

    Few do, so the CSR attributes are requested only after a refusal.
    """
    try:
        return operation(csr(None))
    except EstRefused as refused:
        if refused.status != 400 or not client.csrattrs().binding:
            raise
    return operation(csr)


def _csr_like(key: PrivateKey, current: Identity) -> BoundCsr:
    # RFC 7030, 4.2.2: the subject and subjectAltName of the request must be those of the current certificate.
    subject, alt_names = names_of_certificate(_load_certificates(current.certificate_file)[0])
    return partial(build_csr, key, subject, alt_names)


def _key_type_like(current: Identity, otherwise: str) -> str:
    """The key type of the current certificate: its model allowed that, and most likely still does."""
    try:
        key_type = key_type_of(_load_certificates(current.certificate_file)[0].public_key())
    except WireError:
        return otherwise  # a key that was not generated here
    return key_type if key_type in AGENT_KEY_TYPES else otherwise


def _load_certificates(path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(read_file(path))
    except ValueError as error:
        raise BadConfig(f"{path} cannot be read as PEM certificates.") from error


if __name__ == "__main__":
    main()
