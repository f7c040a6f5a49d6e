"""The child that enrolls, against an EST server that answers what a test says: what it keeps, and what it reports."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from device_agent import enroll_child
from device_agent.config.agent_config import NewHome, write_config
from device_agent.enroll_child import perform, suggested
from device_agent.enrollment import trust_updates
from device_agent.enrollment.enrollment import EnrollmentJob, Outcome
from device_agent.errors import NotEnrolled
from device_agent.store.device_key import certificate_info, fingerprint, parse_key
from device_agent.store.identity_store import Identity, IdentityStore
from fleet.ca.authority import create_issuing, create_root, succeed_root
from fleet.est_client.errors import BadConfig, EstBadAnswer, EstBusy, EstRefused, EstUnreachable
from fleet.wire.csrattrs import CsrAttributes
from fleet.wire.trust_update import key_name, sign_trust_update
from tests.device_agent.fleet_parts import DEADLINE_SECONDS, Authority, key_pem, pem
from tests.device_agent.wild_servers import answers, http, tls_server

pytestmark = pytest.mark.usefixtures("forked_programs")
NOW = datetime.now(UTC) + timedelta(hours=2)  # later than any certificate that a long run makes


class FakeServer:
    """In place of EstClient: issues, or raises what `refusals` hold, oldest first."""

    def __init__(self, authority: Authority) -> None:
        self.authority = authority
        self.refusals: list[Exception] = []
        self.made: list[dict[str, Any]] = []
        self.asked: list[tuple[str, bytes | None, str | None]] = []
        self.binding = False
        self.window: tuple[datetime, datetime] | None = None
        self.server_time = None
        self.update: bytes | None = None
        self.server_update: bytes | None = None
        self.shy = False
        """Whether it shows its issuing CA to whom it has issued alone."""

    def __call__(
        self, url: str, ca_file: Path, certificate: Any = None, basic: Any = None, **given: Any
    ) -> "FakeServer":
        self.made.append({"url": url, "certificate": certificate, "basic": basic} | given)
        return self

    def cacerts(self) -> list[x509.Certificate]:
        self.asked.append(("cacerts", None, None))
        certificate = self.made[-1]["certificate"]
        if self.shy and not (certificate and self._knows(certificate)):
            return [self.authority.root]
        return [self.authority.root, self.authority.issuing]

    def _knows(self, files: tuple[str, Path]) -> bool:
        [certificate] = x509.load_pem_x509_certificates(Path(files[0]).read_bytes())
        key = parse_key(files[1].read_bytes())
        return bool(key and certificate.public_key() == key.public_key())

    def renewal_info(self, fingerprint: str) -> tuple[tuple[datetime, datetime] | None, float]:
        self.asked.append((f"renewal-info/{fingerprint}", None, None))
        return self.window, 77.0

    def trust_update(self) -> bytes | None:
        return self.update

    def server_trust_update(self) -> bytes | None:
        return self.server_update

    def csrattrs(self) -> CsrAttributes:
        self.asked.append(("csrattrs", None, None))
        return CsrAttributes(binding=self.binding)

    def simpleenroll(self, csr: Any, label: str | None = None) -> x509.Certificate:
        return self._issue("simpleenroll", csr, label)

    def simplereenroll(self, csr: Any, label: str | None = None) -> x509.Certificate:
        return self._issue("simplereenroll", csr, label)

    def _issue(self, operation: str, csr: Any, label: str | None) -> x509.Certificate:
        der = csr if isinstance(csr, bytes) else csr("the binding")
        self.asked.append((operation, der, label))
        if self.refusals:
            raise self.refusals.pop(0)
        public_key = x509.load_der_x509_csr(der).public_key()
        return self.authority.issue("cam-7", key=SimpleNamespace(public_key=lambda: public_key))[0]


@pytest.fixture
def server(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    server = FakeServer(authority)
    monkeypatch.setattr(enroll_child, "EstClient", server)
    return server


@pytest.fixture
def store(tmp_path: Path, authority: Authority) -> IdentityStore:
    write_config(tmp_path / "home", NewHome("cam-7", "https://h", "h", 1, authority.ca_file.read_bytes()))
    return IdentityStore(tmp_path / "home")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def put(store: IdentityStore, authority: Authority) -> Identity:
    certificate, key = authority.issue("cam-7")
    slot = store.spare_slot()
    store.clear(slot)
    store.write_key(slot, key_pem(key))
    return store.complete(slot, pem(certificate, authority.issuing), certificate_info(certificate, "cam-7", NOW))


def enrolling(home: Path, **given: Any) -> EnrollmentJob:
    return EnrollmentJob(home, "enroll", token="id.secret", **given)


@pytest.mark.parametrize(
    ("status", "kept"), [(400, False), (403, False), (401, True), (404, True), (409, True), (0, True)]
)
def test_which_refusals_cost_the_key(
    server: FakeServer, store: IdentityStore, home: Path, status: int, kept: bool
) -> None:
    """400 and 403 judge this very key, as 401 does not: a mistyped token is tried again with the same one."""
    server.refusals = [EstRefused("no", status=status)]
    with pytest.raises(EstRefused):
        perform(enrolling(home), NOW)
    assert (store.unfinished_key("slot-a") is not None) is kept
    assert perform(enrolling(home), NOW) == store.candidate()


@pytest.mark.parametrize("error", [EstUnreachable("gone"), EstBadAnswer("what?"), EstBusy("later", pending=True)])
def test_other_failures_keep_the_key(server: FakeServer, store: IdentityStore, home: Path, error: Exception) -> None:
    server.refusals = [error]
    with pytest.raises(type(error)):
        perform(enrolling(home), NOW)
    key = store.unfinished_key("slot-a")
    assert key
    candidate = perform(enrolling(home), NOW)
    assert candidate.key_file.read_bytes() == key
    assert len({der for _, der, _ in server.asked if der}) == 2  # ECDSA: two signatures
    assert candidate.certificate.obtained_at == NOW


def test_the_chain_is_asked_for_before_a_token_is_spent(server: FakeServer, store: IdentityStore, home: Path) -> None:
    perform(enrolling(home, label="cam"), NOW)
    assert [(name, label) for name, _, label in server.asked] == [("cacerts", None), ("simpleenroll", "cam")]
    [made] = server.made
    assert (made["certificate"], made["basic"]) == (None, ("cam-7", "id.secret"))


def test_only_a_pending_request_is_said_in_our_words(server: FakeServer, store: IdentityStore, home: Path) -> None:
    server.refusals = [EstBusy("theirs", pending=True), EstBusy("theirs", pending=False)]
    with pytest.raises(EstBusy) as pending:
        perform(EnrollmentJob(home, "enroll"), NOW)
    key = parse_key(store.unfinished_key("slot-a") or b"")
    assert key
    assert pending.value.message == f"Waiting for approval. This device's key is {fingerprint(key)}."
    with pytest.raises(EstBusy, match="theirs"):
        perform(EnrollmentJob(home, "enroll"), NOW)


@pytest.mark.parametrize(
    ("operation", "token", "patience"), [("enroll", "t", 60), ("enroll", "", 0), ("reenroll", "", 60)]
)
def test_an_approval_is_not_waited_for_in_here(
    server: FakeServer,
    store: IdentityStore,
    home: Path,
    authority: Authority,
    operation: Any,
    token: str,
    patience: float,
) -> None:
    store.promote(put(store, authority))
    perform(EnrollmentJob(home, operation, token=token), NOW)
    policy = server.made[0]["policy"]
    assert (policy.timeout_seconds, policy.patience_seconds, policy.check_time) == (30.0, patience, True)


def test_a_renewal_is_by_the_current_certificate_and_for_its_names(
    server: FakeServer, store: IdentityStore, home: Path, authority: Authority
) -> None:
    current = put(store, authority)
    store.promote(current)
    candidate = perform(EnrollmentJob(home, "reenroll"), NOW)
    assert server.made[0]["certificate"] == current.files
    assert server.made[0]["basic"] is None
    assert [name for name, _, _ in server.asked] == ["cacerts", "simplereenroll"]
    csr = x509.load_der_x509_csr(server.asked[1][1] or b"")
    assert csr.subject.rfc4514_string() == "CN=cam-7"
    assert (store.current(), store.candidate()) == (current, candidate)


def test_without_a_certificate_nothing_is_renewed(server: FakeServer, store: IdentityStore, home: Path) -> None:
    with pytest.raises(NotEnrolled):
        perform(EnrollmentJob(home, "reenroll"), NOW)
    assert server.asked == []


def test_a_candidate_of_another_process_is_never_overwritten(
    server: FakeServer, store: IdentityStore, home: Path, authority: Authority
) -> None:
    store.promote(put(store, authority))
    waiting = put(store, authority)
    assert perform(EnrollmentJob(home, "reenroll"), NOW) == waiting
    assert perform(EnrollmentJob(home, "reenroll", replaces="ab" * 32), NOW) == waiting
    assert server.asked == []
    fresh = perform(EnrollmentJob(home, "reenroll", replaces=waiting.certificate.fingerprint), NOW)
    assert fresh.certificate.serial != waiting.certificate.serial


@pytest.mark.parametrize(("status", "binding", "asked"), [(400, True, 4), (400, False, 3), (403, True, 2)])
def test_a_binding_is_given_to_who_insists(
    server: FakeServer, store: IdentityStore, home: Path, status: int, binding: bool, asked: int
) -> None:
    server.refusals, server.binding = [EstRefused("no", status=status)], binding
    if asked == 4:
        perform(enrolling(home), NOW)
        bound = x509.load_der_x509_csr(server.asked[-1][1] or b"")
        assert any(each.value == b"the binding" for each in bound.attributes)
    else:
        with pytest.raises(EstRefused):
            perform(enrolling(home), NOW)
    assert len(server.asked) == asked


def test_a_certificate_for_another_key_is_not_stored(
    server: FakeServer, store: IdentityStore, home: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        server, "_issue", lambda *_: authority.issue("cam-7", key=ec.generate_private_key(ec.SECP256R1()))[0]
    )
    with pytest.raises(EstBadAnswer, match="another key"):
        perform(enrolling(home), NOW)
    assert store.candidate() is None


def test_a_server_of_several_cas_is_asked_again_with_the_certificate(
    server: FakeServer, store: IdentityStore, home: Path, authority: Authority
) -> None:
    server.shy = True
    candidate = perform(enrolling(home), NOW)
    assert len(x509.load_pem_x509_certificates(candidate.certificate_file.read_bytes())) == 2
    first, second = server.made
    assert first["certificate"] is None
    assert second["certificate"][1] == candidate.key_file
    assert second["basic"] is None
    assert (second["policy"].timeout_seconds, second["policy"].patience_seconds) == (30.0, 0)


def test_a_new_enrollment_is_not_by_the_old_certificate(
    server: FakeServer, store: IdentityStore, home: Path, authority: Authority
) -> None:
    """It may be revoked: the token alone is shown."""
    store.promote(put(store, authority))
    perform(enrolling(home), NOW)
    assert server.made[0]["certificate"] is None


def test_a_clock_that_is_not_set_checks_no_dates(
    server: FakeServer, store: IdentityStore, home: Path, authority: Authority
) -> None:
    perform(enrolling(home), datetime(1970, 1, 1, tzinfo=UTC))
    assert server.made[0]["policy"].check_time is False


def test_a_renewal_keeps_the_type_of_key_that_a_device_can_make(
    server: FakeServer, store: IdentityStore, home: Path, authority: Authority
) -> None:
    for curve, expected in ((ec.SECP384R1(), "secp384r1"), (ec.SECP521R1(), "secp256r1")):
        certificate, key = authority.issue("cam-7", key=ec.generate_private_key(curve))
        slot = store.spare_slot()
        store.clear(slot)
        store.write_key(slot, key_pem(key))
        info = certificate_info(certificate, "cam-7", NOW)
        store.promote(store.complete(slot, pem(certificate, authority.issuing), info))
        made = parse_key(perform(EnrollmentJob(home, "reenroll"), NOW).key_file.read_bytes())
        assert isinstance(made, ec.EllipticCurvePrivateKey)
        assert made.curve.name == expected


def test_a_ca_file_that_is_none_is_said(server: FakeServer, store: IdentityStore, home: Path) -> None:
    (home / "ca.pem").write_text("hello")
    with pytest.raises(BadConfig, match=r"ca\.pem"):
        perform(enrolling(home), NOW)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_new_root_goes_into_the_homes_own_file_alone(
    server: FakeServer,
    store: IdentityStore,
    home: Path,
    tmp_path: Path,
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
    elsewhere: bool,
) -> None:
    new = Authority(tmp_path / "new", "new").root
    monkeypatch.setattr(trust_updates, "new_roots", lambda *_: (new,))
    file = home / "ca.pem"
    if elsewhere:
        file = tmp_path / "of the system.pem"
        (home / "ca.pem").rename(file)
        config = home / "agent.toml"
        config.write_text(config.read_text().replace('ca_file = "ca.pem"', f"ca_file = '{file}'"))
    perform(enrolling(home), NOW)
    roots = x509.load_pem_x509_certificates(file.read_bytes())
    assert roots == ([authority.root] if elsewhere else [authority.root, new])
    assert (home / "ca.pem").exists() is not elsewhere


def test_a_root_that_the_fleet_has_retired_leaves_the_homes_file(
    server: FakeServer, store: IdentityStore, home: Path, authority: Authority, capsys: pytest.CaptureFixture[str]
) -> None:
    """And stays in it as long as the update cannot be believed."""
    old, old_key = create_root("test", authority.root.not_valid_before_utc - timedelta(days=9))
    (home / "ca.pem").write_bytes(pem(old, authority.root))

    def trusted() -> list[x509.Certificate]:
        return x509.load_pem_x509_certificates((home / "ca.pem").read_bytes())

    for data in (None, b"{}", sign_trust_update([key_name(authority.root)], [old], old_key, NOW)):
        server.update = data
        perform(enrolling(home), NOW)
        assert trusted() == [old, authority.root]
    assert "trust-update-refused" in capsys.readouterr().err
    server.update = sign_trust_update([key_name(old)], [authority.issuing], authority.issuing_key, NOW)
    perform(enrolling(home), NOW)
    assert trusted() == [authority.root]


def test_a_device_of_a_tenant_drops_the_servers_former_root_as_well(
    server: FakeServer, store: IdentityStore, home: Path, authority: Authority
) -> None:
    """Its certificate is below the tenant's root; by the fleet's it verifies the server, and that has rolled over."""
    begin = authority.root.not_valid_before_utc
    old, old_key = create_root("Fleet", begin - timedelta(days=9))
    new, new_key = succeed_root(old, old_key, begin - timedelta(days=1)).certified
    issuing, key = create_issuing("Fleet", new, new_key, begin)
    former, _ = create_root("test", begin - timedelta(days=9))
    (home / "ca.pem").write_bytes(pem(former, old, new, authority.root))
    server.update = b"{}"  # what is wrong with one of them keeps nothing of the other
    server.server_update = sign_trust_update([key_name(old), key_name(former)], [issuing], key, NOW)
    perform(enrolling(home), NOW)
    assert x509.load_pem_x509_certificates((home / "ca.pem").read_bytes()) == [former, new, authority.root]
    server.update = sign_trust_update([key_name(former)], [authority.issuing], authority.issuing_key, NOW)
    perform(enrolling(home), NOW)
    assert x509.load_pem_x509_certificates((home / "ca.pem").read_bytes()) == [new, authority.root]


def test_without_a_new_root_the_file_is_not_written(
    server: FakeServer, store: IdentityStore, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[object] = []
    monkeypatch.setattr(trust_updates, "write_atomically", lambda *given: written.append(given))
    perform(enrolling(home), NOW)
    assert written == []


@pytest.mark.parametrize("window", [None, (NOW, NOW)])
def test_the_suggested_window(
    server: FakeServer, store: IdentityStore, home: Path, window: tuple[datetime, datetime] | None
) -> None:
    server.window = window
    outcome = suggested(EnrollmentJob(home, "window", replaces="ab" * 32, deadline_seconds=60.0))
    expected = (NOW.isoformat(),) * 2 if window else ()
    assert outcome == Outcome(True, slot="ab" * 32, retry_after_seconds=77.0, window=expected)
    assert server.asked == [(f"renewal-info/{'ab' * 32}", None, None)]
    [made] = server.made
    assert (made["policy"].timeout_seconds, made["policy"].patience_seconds) == (20.0, 0)


# The outcome, as the parent reads it


@pytest.fixture
def outcome_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, Outcome]]:
    def run(failure: Exception | Identity, operation: Any = "enroll") -> tuple[int, Outcome]:
        def answer(*_: object) -> Any:
            if isinstance(failure, Exception):
                raise failure
            return failure

        monkeypatch.setattr(enroll_child, "perform", answer)
        monkeypatch.setattr(enroll_child.signal, "alarm", lambda _: None)  # type: ignore[attr-defined]
        monkeypatch.setattr(sys, "stdin", io.StringIO(EnrollmentJob(Path("/home"), operation).to_json()))
        with pytest.raises(SystemExit) as ended:
            enroll_child.main()
        return int(str(ended.value.code)), Outcome(**json.loads(capsys.readouterr().out) | {"window": ()})

    return run


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (EstRefused("no", "ask", 403), Outcome(False, message="no", advice="ask", refused=True)),
        (EstUnreachable("gone", "wait"), Outcome(False, message="gone", advice="wait")),
        (
            EstBusy("later", "", 9.0, pending=True),
            Outcome(False, message="later", retry_after_seconds=9.0, pending=True),
        ),
        (EstBusy("later", "", 9.0), Outcome(False, message="later", retry_after_seconds=9.0)),
        (NotEnrolled("none", "enroll"), Outcome(False, message="none", advice="enroll")),
        (BadConfig("bad"), Outcome(False, message="bad")),
    ],
)
def test_each_failure_is_reported(outcome_of: Callable[..., Any], error: Exception, expected: Outcome) -> None:
    assert outcome_of(error) == (1, expected)


def test_a_full_disk_is_reported(outcome_of: Callable[..., Any]) -> None:
    code, outcome = outcome_of(OSError(28, "No space left on device"))
    assert (code, outcome.ok, "No space left" in outcome.message) == (1, False, True)


def test_success_names_the_slot(outcome_of: Callable[..., Any], store: IdentityStore, authority: Authority) -> None:
    assert outcome_of(put(store, authority)) == (0, Outcome(True, slot="slot-a"))


def test_enroll_prints_each_wait(authority: Authority, tmp_path: Path) -> None:
    busy = http("503 Service Unavailable", b"The webhook is down.", "Content-Type: text/plain", "Retry-After: 1")
    with tls_server(authority, answers(busy, http("403 Forbidden"))) as port:
        home = tmp_path / "a waiting home"
        write_config(
            home, NewHome("cam-7", f"https://localhost:{port}", "localhost", 1, authority.ca_file.read_bytes())
        )
        command = [sys.executable, "-m", "device_agent", "--home", str(home), "enroll"]
        done = subprocess.run(
            command, input="a-token", capture_output=True, text=True, check=False, timeout=DEADLINE_SECONDS
        )
    assert done.returncode == 1
    told, error = done.stderr.splitlines()
    assert told == "Waiting for 1 s, as the EST server asks: The webhook is down."
    assert error.startswith("Error: The EST server refused cacerts (403)")


def test_a_renewals_wait_is_a_line_of_the_agents_log(capsys: pytest.CaptureFixture[str]) -> None:
    enroll_child._report(EnrollmentJob(Path("/home"), "reenroll"), "Waiting for 1 s.")
    assert capsys.readouterr().err.endswith('Z renewal-waiting reason="Waiting for 1 s."\n')


def test_what_has_been_replaced_while_the_lock_was_waited_for_is_not_renewed(
    server: FakeServer, store: IdentityStore, home: Path, authority: Authority
) -> None:
    """`enroll` has promoted another certificate meanwhile: that is the outcome."""
    before = put(store, authority)
    store.promote(before)
    after = put(store, authority)
    store.promote(after)
    assert perform(EnrollmentJob(home, "reenroll", renews=before.certificate.fingerprint), NOW) == after
    assert server.asked == []
    renewed = perform(EnrollmentJob(home, "reenroll", renews=after.certificate.fingerprint), NOW)
    assert store.candidate() == renewed


def test_a_wait_for_which_there_is_no_patience_is_the_outcome(
    server: FakeServer, store: IdentityStore, home: Path, authority: Authority
) -> None:
    store.promote(put(store, authority))
    perform(EnrollmentJob(home, "reenroll", patience_seconds=10.0), NOW)
    assert server.made[0]["policy"].patience_seconds == 10.0


def test_a_certificate_that_begins_in_the_future_is_refused_by_a_clock_that_is_set(
    server: FakeServer, store: IdentityStore, home: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    def issued(begin: datetime) -> None:
        def issue(operation: str, csr: Any, label: str | None) -> x509.Certificate:
            key = x509.load_der_x509_csr(csr).public_key()
            given = SimpleNamespace(public_key=lambda: key)
            return authority.issue("cam-7", key=given, begin=begin, end=begin + timedelta(days=30))[0]

        monkeypatch.setattr(server, "_issue", issue)

    issued(NOW + timedelta(days=1))
    with pytest.raises(EstBadAnswer, match="begins in the future"):
        perform(enrolling(home), NOW)
    assert store.candidate() is None
    issued(NOW + timedelta(minutes=4))  # two clocks never agree
    perform(enrolling(home), NOW)
    issued(NOW)
    perform(enrolling(home), datetime(1970, 1, 1, tzinfo=UTC))  # this clock proves nothing
