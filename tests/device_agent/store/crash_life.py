"""A device's life in this process: the agent's own executor, store and enrollment, a modelled server, virtual time.

with in_process(server):
    enroll(home); run(home, renew=True)
"""

import contextlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from device_agent import enroll_child
from device_agent.cli import enrollment
from device_agent.config.agent_config import NewHome, read_config, write_config
from device_agent.core import Link, Role, Setback
from device_agent.doctor.health import problem_of
from device_agent.enrollment import renewal_schedule, rotation
from device_agent.enrollment.enrollment import EnrollmentJob, Outcome
from device_agent.link import connection, tls_context
from device_agent.link.mqtt_link import Connected, LinkEvent, Lost
from device_agent.log.event_log import EventLog
from device_agent.loop.executor import Executor
from device_agent.store.identity_store import Identity, IdentityStore
from fleet.est_client.arguments import AGENT_KEY_TYPES
from fleet.est_client.certificate_checks import lifetime_of
from fleet.est_client.errors import EstRefused
from fleet.wire.csrattrs import CsrAttributes
from fleet.wire.spki import spki_of
from tests.device_agent.fleet_parts import Authority

NOW = datetime.now(UTC) + timedelta(hours=2)  # later than any certificate that a long run makes
STEPS_MAX = 80
TOKEN = "id.secret"


@dataclass(frozen=True, slots=True)
class Registry:
    """What the server knows: a value, so that a crash of the device does not undo it."""

    issued: tuple[x509.Certificate, ...] = ()
    ended: frozenset[bytes] = frozenset()
    """Fingerprints of certificates that are superseded or revoked."""
    used: frozenset[bytes] = frozenset()
    token_spent_for: bytes | None = None
    """The public key that the token has enrolled."""


@dataclass(slots=True)
class ModelServer:
    """EST and gateway as the fleet has them: a repeated request gets the certificate that was issued for it; the first
    use of a certificate ends its predecessors; a certificate has one unused successor."""

    authority: Authority
    registry: Registry = Registry()
    on_change: Callable[[Registry], None] = lambda _: None
    extra_cas: tuple[x509.Certificate, ...] = ()
    refusals: list[Exception] = field(default_factory=list)
    """Raised instead of the next answers."""
    expired: frozenset[bytes] = frozenset()
    """Fingerprints of certificates that only EST still takes, to renew them, and only with `grace`."""
    grace: bool = False
    maker: tuple[Path, Path] | None = None
    """Certificate and key of the manufacturer, which may enroll the device again and again."""
    readmits: bool = False
    """The token enrolls another key, too."""

    def change(self, **given: Any) -> None:
        self.registry = replace(self.registry, **given)
        self.on_change(self.registry)

    def is_maker(self, fingerprint: bytes | None) -> bool:
        return self.maker is not None and fingerprint == presented(self.maker[0])

    def client(self, _url: str, _ca: Path, certificate: Any = None, basic: Any = None, **_: Any) -> "ModelEst":
        return ModelEst(self, presented(Path(certificate[0])) if certificate else None, basic is not None)

    def issue(self, public_key: Any, earlier: tuple[bytes, ...] = ()) -> x509.Certificate:
        """The certificate for `public_key`: that which was issued before, if it is unused."""
        known = self.registry
        for each in known.issued:
            if each.public_key() == public_key and fingerprint_of(each) not in known.used | known.ended:
                return each
        certificate, _ = self.authority.issue("cam-7", key=SimpleNamespace(public_key=lambda: public_key))
        self.change(issued=(*known.issued, certificate), ended=known.ended | set(earlier))
        return certificate

    def accepts(self, fingerprint: bytes) -> bool:
        """Whether the gateway does; its first use ends all that were issued before it."""
        known = self.registry
        order = [fingerprint_of(each) for each in known.issued]
        if fingerprint not in order or fingerprint in known.ended | self.expired:
            return False
        if fingerprint not in known.used:
            self.change(used=known.used | {fingerprint}, ended=known.ended | set(order[: order.index(fingerprint)]))
        return True


@dataclass(frozen=True, slots=True)
class ModelEst:
    """In place of EstClient."""

    server: ModelServer
    presented: bytes | None
    has_token: bool
    server_time: None = None

    def cacerts(self) -> list[x509.Certificate]:
        authority = self.server.authority
        return [authority.root, authority.issuing, *self.server.extra_cas]

    def csrattrs(self) -> CsrAttributes:
        return CsrAttributes()

    def trust_update(self) -> None:
        return None

    server_trust_update = trust_update

    def renewal_info(self, _fingerprint: str) -> tuple[None, float]:
        return None, 0.0

    def simpleenroll(self, csr: bytes, label: str | None = None) -> x509.Certificate:
        server, public_key = self.server, x509.load_der_x509_csr(csr).public_key()
        if server.refusals:
            raise server.refusals.pop(0)
        if not self.has_token and not server.is_maker(self.presented):
            raise EstRefused("refused (no-credentials)", status=401)
        spent = server.registry.token_spent_for not in (None, spki_of(public_key))
        if self.has_token and spent and not server.readmits:
            raise EstRefused("refused (token-used-up)", status=403)
        certificate = server.issue(public_key)
        if self.has_token:
            server.change(token_spent_for=spki_of(public_key))
        return certificate

    def simplereenroll(self, csr: bytes, label: str | None = None) -> x509.Certificate:
        known = self.server.registry
        if self.server.refusals:
            raise self.server.refusals.pop(0)
        order = [fingerprint_of(each) for each in known.issued]
        if self.presented not in order or self.presented in known.ended:
            raise EstRefused("refused", status=403, reason_code="certificate-revoked")
        if self.presented in self.server.expired and not self.server.grace:
            raise EstRefused("refused", status=403, reason_code="certificate-expired")
        unused = [each for each in order[order.index(self.presented) + 1 :] if each not in known.used]
        return self.server.issue(x509.load_der_x509_csr(csr).public_key(), tuple(unused))


def fingerprint_of(certificate: x509.Certificate) -> bytes:
    return certificate.fingerprint(hashes.SHA256())


def presented(chain: Path) -> bytes:
    """Fingerprint of the certificate that a client with the chain in this file presents."""
    return fingerprint_of(x509.load_pem_x509_certificates(chain.read_bytes())[0])


class ModelLink:
    """In place of MqttLink: connects, or is refused, at once."""

    socket = None
    wants_write = False

    def __init__(self, server: ModelServer, files: tuple[Path, Path]) -> None:
        self._server, self._files = server, files
        self._events: list[LinkEvent] = []

    def open(self) -> None:
        if self._server.accepts(presented(self._files[0])):
            self._events.append(Connected(False, 20, None))
        else:
            self._events.append(Lost(Setback.REFUSED, "not authorized", answered=True, reached=True))

    def events(self) -> list[LinkEvent]:
        events, self._events = self._events, []
        return events

    def tick(self) -> None:
        pass

    def close(self) -> None:
        pass


class EndedProcess:
    """In place of EnrollmentProcess: the job is done in this process as its outcome is read."""

    def __init__(self, job: EnrollmentJob) -> None:
        self._job = job

    def fileno(self) -> int:
        raise AssertionError("nobody polls here")

    def read(self) -> Outcome:
        return enroll_child.outcome_of(self._job, NOW)

    def kill(self) -> Outcome:
        return Outcome(ok=False, message="killed")


@contextlib.contextmanager
def in_process(server: ModelServer) -> Iterator[None]:
    """No processes, no network, no clock, while the block runs."""
    with contextlib.ExitStack() as stack:
        for module, name, value in (
            (enroll_child, "EstClient", server.client),
            (rotation, "EnrollmentProcess", EndedProcess),
            (renewal_schedule, "EnrollmentProcess", EndedProcess),
            (enrollment, "enroll_and_wait", lambda job: enroll_child.outcome_of(job, NOW)),
            (tls_context, "client_context", lambda _ca, files, **_: files),
            (connection, "MqttLink", lambda _target, make_context, *_: ModelLink(server, make_context())),
        ):
            stack.enter_context(mock.patch.object(module, name, value))
        yield


def new_home(home: Path, authority: Authority) -> None:
    write_config(home, NewHome("cam-7", "https://h", "h", 1, authority.ca_file.read_bytes()))


def enroll(home: Path, files: tuple[Path, Path] | None = None, *, keep: bool = False) -> None:
    """`device-agent enroll`, with the one token there is, or with `files`."""
    token = "" if files else TOKEN
    enrollment.enroll(read_config(home), enrollment.EnrollmentRequest(AGENT_KEY_TYPES[0], token, files, keep), NOW)


def run(home: Path, *, renew: bool = False) -> None:
    """`device-agent run`, until it is connected with a current identity and has no other; with `renew`, as on
    SIGUSR1. A renewal that fails is tried again, as always."""
    seconds = 0.0
    log = io.StringIO()
    executor = Executor(
        read_config(home), EventLog(stream=log), lambda: None, lambda: NOW, lambda: seconds, lambda: 0.5
    )
    executor.identities.refresh()
    done = 0
    for _ in range(STEPS_MAX):
        wait = executor.decide_until_wait()
        executor.take_events()
        link, turn = executor.connection, executor.rotation
        if link.state is Link.UP and link.uses is Role.CURRENT:
            if executor.candidate is None and (not renew or turn.done > done):
                executor.close()
                return
            may_renew = executor.candidate is None or turn.candidate_refused
            if renew and may_renew and not (turn.forced or turn.child.running):
                done = turn.done
                executor.force_renewal(None)
        seconds += wait
    raise AssertionError(f"it does not come to rest:\n{log.getvalue()}")


def recover(home: Path, *, by_enroll: bool = False) -> None:
    """What happens after a reboot: the agent runs if it has anything to run with, else `enroll` is repeated with the
    same token."""
    store = IdentityStore(home)
    if by_enroll or (store.current() is None and store.candidate() is None and not store.has_bootstrap()):
        with contextlib.suppress(AlreadyEnrolled):
            _enroll_unless_enrolled(home)
    run(home)


class AlreadyEnrolled(Exception):
    pass


def _enroll_unless_enrolled(home: Path) -> None:
    current = IdentityStore(home).current()
    if current is not None and not problem_of(read_config(home), current, NOW):
        raise AlreadyEnrolled
    enroll(home)


def working_identity(home: Path, server: ModelServer) -> Identity:
    """The current identity, whole, and accepted by the server."""
    store = IdentityStore(home)
    current = store.current()
    assert current is not None, store.slots()
    assert store.candidate() is None, store.slots()
    assert not problem_of(read_config(home), current, NOW)
    assert server.accepts(bytes.fromhex(current.certificate.fingerprint))
    assert lifetime_of(server.registry.issued[-1]).not_after > NOW
    return current
