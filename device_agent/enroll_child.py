"""`python -m device_agent.enroll_child`: the child process of one enrollment.

Generates the key, requests the certificate over EST, checks it and writes the candidate slot. So the long-lived agent
never loads `cryptography`, and a hung request is ended by killing a process. The job is one JSON object on stdin, the
outcome one on stdout: a token is never in an argument list or an environment.
"""

import signal
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from device_agent.agent_config import AgentConfig, read_config
from device_agent.atomic_files import write_atomically
from device_agent.device_key import PrivateKey, candidate_key, certificate_info, device_subject, fingerprint, spki_der
from device_agent.enrollment import EnrollmentJob, Outcome
from device_agent.errors import NotEnrolled
from device_agent.event_log import EventLog
from device_agent.identity_store import Identity, IdentityStore
from device_agent.root_rollover import load_anchors, new_roots
from fleet.est_client.arguments import AGENT_KEY_TYPES
from fleet.est_client.certificate_checks import check_certificate, find_chain, lifetime_of
from fleet.est_client.client import BoundCsr, EstClient, Policy
from fleet.est_client.errors import BadConfig, ClientError, EstBusy, EstError, EstRefused
from fleet.est_client.validity import clock_is_credible
from fleet.wire.csr import build_csr
from fleet.wire.errors import WireError
from fleet.wire.keys import key_type_of
from fleet.wire.names import names_of_certificate

LOCK_SECONDS_MAX = 20.0  # a running agent may be renewing just now


def main() -> None:
    """Read the job, run it, print the outcome; exit 0 if a candidate is in place."""
    job = EnrollmentJob.from_json(sys.stdin.read())
    # The parent's deadline, enforced here too in case the parent is killed.
    signal.alarm(int(job.deadline_seconds) + 1)
    try:
        outcome = suggested(job) if job.operation == "window" else Outcome(True, perform(job, datetime.now(UTC)).slot)
    except EstError as error:
        outcome = Outcome(
            ok=False,
            message=error.message,
            advice=error.advice,
            refused=isinstance(error, EstRefused),
            retry_after_seconds=error.retry_after_seconds if isinstance(error, EstBusy) else 0.0,
            pending=isinstance(error, EstBusy) and error.pending,
        )
    except ClientError as error:
        outcome = Outcome(ok=False, message=error.message, advice=error.advice)
    except OSError as error:
        outcome = Outcome(ok=False, message=f"The home cannot be written: {error}.", advice="Check the disk.")
    print(outcome.to_json(), flush=True)
    raise SystemExit(0 if outcome.ok else 1)


def perform(job: EnrollmentJob, now: datetime) -> Identity:
    """Enroll or re-enroll, and store a candidate in the spare slot.

    Raises: EstError, Busy, NotEnrolled, BadConfig, StoreDamaged, OSError.
    """
    config = read_config(job.home)
    store = IdentityStore(job.home)
    with store.lock(LOCK_SECONDS_MAX):
        current, waiting = store.current(), store.candidate()
        if job.operation == "reenroll" and waiting is not None and waiting.certificate.fingerprint != job.replaces:
            return waiting  # stored by another process, and not tried yet: never overwritten
        renewed = current if job.operation == "reenroll" else None
        slot, key = candidate_key(store, job.key_type if renewed is None else _key_type_like(renewed, job.key_type))
        client = _client(config, job, current, now)
        # First the chain, then the certificate: a one-time token is not spent on an unusable answer.
        intermediates = client.cacerts()
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
            intermediates = _chain_for_us(config, job, certificate, store.key_file(slot), now)
        chain = check_certificate(
            certificate,
            spki_der=spki_der(key),
            device_id=config.device_id,
            intermediates=intermediates,
            anchors=anchors,
            now=now,
        )
        fresh = new_roots(anchors, intermediates, now)
        if fresh and config.ca_file.parent == job.home:  # a CA file elsewhere is not the agent's to change
            pem = b"".join(each.public_bytes(Encoding.PEM) for each in (*anchors, *fresh))
            write_atomically(config.ca_file, pem)
        chain_pem = b"".join(each.public_bytes(Encoding.PEM) for each in (certificate, *chain))
        return store.complete(slot, chain_pem, certificate_info(certificate, config.device_id, now))


def suggested(job: EnrollmentJob) -> Outcome:
    """The renewal window that the server suggests for the certificate `job.replaces`.

    Raises: EstError, BadConfig.
    """
    config = read_config(job.home)
    client = EstClient(config.est_url, config.ca_file, policy=Policy(job.deadline_seconds / 3, patience_seconds=0))
    window, again_seconds = client.renewal_info(job.replaces)
    return Outcome(
        ok=True,
        slot=job.replaces,
        retry_after_seconds=again_seconds,
        window=tuple(at.isoformat() for at in window) if window else (),
    )


def _client(config: AgentConfig, job: EnrollmentJob, current: Identity | None, now: datetime) -> EstClient:
    if job.operation == "reenroll" and current is None:
        raise NotEnrolled("There is no certificate to renew.", "Enroll first: device-agent enroll.")
    return EstClient(
        config.est_url,
        config.ca_file,
        certificate=current.files if job.operation == "reenroll" and current else None,
        basic=(config.device_id, job.token) if job.token else None,
        policy=Policy(
            timeout_seconds=min(30.0, job.deadline_seconds),
            patience_seconds=job.deadline_seconds / 2 if job.token or job.operation == "reenroll" else 0.0,
            check_time=clock_is_credible(now, current.lifetime if current else None),
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
    config: AgentConfig, job: EnrollmentJob, certificate: x509.Certificate, key_file: Path, now: datetime
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
                policy=Policy(
                    timeout_seconds=min(30.0, job.deadline_seconds),
                    patience_seconds=0,
                    check_time=clock_is_credible(now, lifetime_of(certificate)),
                ),
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
        return x509.load_pem_x509_certificates(path.read_bytes())
    except ValueError as error:
        raise BadConfig(f"{path} cannot be read as PEM certificates.") from error


if __name__ == "__main__":
    main()
