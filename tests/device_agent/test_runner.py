"""The runner in this process, against servers that mosquitto is not: older, expired, refusing, silent."""

import base64
import io
import itertools
import os
import re
import signal
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from device_agent.apps.control import ask
from device_agent.cli.enrollment import renew
from device_agent.config.agent_config import NewHome, read_config, write_config
from device_agent.core import TICK_SECONDS
from device_agent.enrollment.enrollment import Outcome
from device_agent.enrollment.renewal_schedule import RenewalSchedule
from device_agent.errors import NotEnrolled, NotRunning
from device_agent.log.event_log import EventLog
from device_agent.loop.runner import Runner
from device_agent.spool.line_reader import LineReader
from device_agent.spool.publisher import PublishInput
from device_agent.store.device_key import certificate_info
from device_agent.store.identity_store import Identity, IdentityStore
from fleet.ca.authority import SERVER_LIFETIME
from tests.certs_only import encode_certs_only
from tests.device_agent.fleet_parts import DEADLINE_SECONDS, Authority, key_pem, pem
from tests.device_agent.wild_servers import answers, http, read_packet, tls_server
from tests.free_ports import free_port

CONNACK_5, CONNACK_3 = b"\x20\x03\x00\x00\x00", b"\x20\x02\x00\x00"
BAD_VERSION_5, BAD_VERSION_3 = b"\x20\x03\x00\x84\x00", b"\x20\x02\x00\x01"
NOT_AUTHORIZED = b"\x20\x03\x00\x87\x00"


def level(connect: bytes) -> int:
    """The protocol level that a CONNECT asks for."""
    return connect[7] if connect[1:7] == b"\x00\x04MQTT" else 0


class Log(io.StringIO):
    """The agent's log; stops the agent, as a person would, once enough has been said."""

    def __init__(self, enough: Callable[[str], bool]) -> None:
        super().__init__()
        self._enough = enough
        self._stopped = False

    def write(self, text: str) -> int:
        written = super().write(text)
        if not self._stopped and self._enough(self.getvalue()):
            self._stopped = True
            os.kill(os.getpid(), signal.SIGTERM)
        return written


def home_at(folder: Path, authority: Authority, port: int) -> IdentityStore:
    """A device's home without an identity, with short waits."""
    home = folder / "a home"
    file = write_config(
        home, NewHome("cam-7", "https://localhost:1", "localhost", port, authority.ca_file.read_bytes())
    )
    text = file.read_text()
    for setting, value in (("base", "1.0"), ("cap", "120.0"), ("refused", "60.0")):
        assert f"{setting}_seconds = {value}" in text
        text = text.replace(f"{setting}_seconds = {value}", f"{setting}_seconds = 0.02")
    file.write_text(text)
    return IdentityStore(home)


def put(store: IdentityStore, authority: Authority) -> Identity:
    """A new candidate, really issued."""
    certificate, key = authority.issue("cam-7")
    slot = store.spare_slot()
    store.clear(slot)
    store.write_key(slot, key_pem(key))
    info = certificate_info(certificate, "cam-7", certificate.not_valid_before_utc)
    return store.complete(slot, pem(certificate, authority.issuing), info)


def run_until(home: Path, enough: Callable[[str], bool], **given: object) -> str:
    """Run the agent until its log is enough; a deadline stops it, too."""
    log = Log(enough)
    timer = threading.Timer(DEADLINE_SECONDS, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    try:
        assert Runner(read_config(home), EventLog(stream=log), **given).run() == 0  # type: ignore[arg-type]
    finally:
        timer.cancel()
    assert enough(log.getvalue()), log.getvalue()
    return log.getvalue()


@pytest.fixture
def authority_500_days_old(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "old ca", made_days_ago=500)


@pytest.mark.parametrize("refusal", [BAD_VERSION_5, BAD_VERSION_3, b""])
def test_an_older_server_is_spoken_to_in_its_version(authority: Authority, tmp_path: Path, refusal: bytes) -> None:
    """Some say that they do not know version 5, in either version's words, and some just hang up."""

    def behave(stream: ssl.SSLSocket) -> None:
        if level(read_packet(stream)) == 5:
            stream.sendall(refusal)
            return
        stream.sendall(CONNACK_3)
        read_packet(stream)

    with tls_server(authority, behave) as port:
        store = home_at(tmp_path, authority, port)
        store.promote(put(store, authority))
        log = run_until(tmp_path / "a home", lambda text: " connected " in text)
    assert "protocol=3.1.1" in log
    assert re.search(r"started .* renewal_due_at=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", log)


def test_the_new_identity_is_tried_first_and_stays_when_it_works(authority: Authority, tmp_path: Path) -> None:
    def behave(stream: ssl.SSLSocket) -> None:
        read_packet(stream)
        stream.sendall(CONNACK_5)
        read_packet(stream)

    with tls_server(authority, behave, client_ca=authority) as port:
        store = home_at(tmp_path, authority, port)
        store.promote(put(store, authority))
        candidate = put(store, authority)
        run_until(tmp_path / "a home", lambda text: " renewed " in text)
    assert store.current() == candidate
    assert sorted(store.slots().values()) == ["current", "empty"]


@pytest.mark.parametrize("accepted", ["current", "candidate"])
def test_after_a_crash_whichever_the_server_takes_is_found(authority: Authority, tmp_path: Path, accepted: str) -> None:
    """The server dropped the old certificate, or never took the new one: only trying tells."""
    good: set[int] = set()

    def behave(stream: ssl.SSLSocket) -> None:
        read_packet(stream)
        serial = int(str((stream.getpeercert() or {})["serialNumber"]), 16)
        stream.sendall(CONNACK_5 if serial in good else NOT_AUTHORIZED)
        read_packet(stream)

    with tls_server(authority, behave, client_ca=authority) as port:
        store = home_at(tmp_path, authority, port)
        first = put(store, authority)
        store.promote(first)
        second = put(store, authority)
        expected = first if accepted == "current" else second
        good.add(int(expected.certificate.serial, 16))
        enough = "connected slot=" if accepted == "current" else " renewed "
        log = run_until(tmp_path / "a home", lambda text: enough in text)
    assert f"connected slot={expected.slot}" in log
    assert store.current() == expected


def test_a_clock_that_is_not_set_does_not_keep_it_out(authority_500_days_old: Authority, tmp_path: Path) -> None:
    """The server's certificate is over by the real clock; the device's says 1970, and it comes in all the same."""
    authority = authority_500_days_old

    def behave(stream: ssl.SSLSocket) -> None:
        read_packet(stream)
        stream.sendall(CONNACK_5)
        read_packet(stream)

    with tls_server(authority, behave) as port:
        store = home_at(tmp_path, authority, port)
        store.promote(put(store, authority))
        log = run_until(tmp_path / "a home", lambda text: "connect-failed" in text)
        assert "expired" in log
        assert "untrusted" in log
        log = run_until(
            tmp_path / "a home", lambda text: " connected " in text, clock=lambda: datetime(1970, 1, 1, tzinfo=UTC)
        )
    assert "clock-not-set" in log
    assert "renewing" not in log


def test_refused_for_good_it_keeps_asking_and_keeps_its_identity(authority: Authority, tmp_path: Path) -> None:
    def behave(stream: ssl.SSLSocket) -> None:
        read_packet(stream)
        stream.sendall(NOT_AUTHORIZED)
        read_packet(stream)

    with tls_server(authority, behave) as port:
        store = home_at(tmp_path, authority, port)
        store.promote(put(store, authority))
        before = store.current()
        log = run_until(tmp_path / "a home", lambda text: text.count(" cause=refused ") >= 4)
    assert "Not authorized" in log
    assert store.current() == before


class EndedEnrollment:
    """A child process that has ended: `end` says how."""

    def __init__(self, end: Callable[[], Outcome]) -> None:
        self._end = end
        self._reading, writing = os.pipe()
        os.close(writing)

    def fileno(self) -> int:
        return self._reading

    def read(self) -> Outcome:
        os.close(self._reading)
        return self._end()


class Replacement:
    """A device with a certificate that is refused, by an agent that then waits an hour; `now` puts another in its
    place, as `device-agent enroll` does."""

    def __init__(self, folder: Path, authority: Authority) -> None:
        self.home = folder / "a home"
        self.authority = authority
        self.seconds = 0.0  # that have passed besides the real ones
        self.refused = threading.Event()
        self.while_connecting: Callable[[], None] = lambda: None
        self._good = ""

    def serve(self, stream: ssl.SSLSocket) -> None:
        read_packet(stream)
        serial = str((stream.getpeercert() or {})["serialNumber"])
        if int(serial, 16) == int(self._good or "0", 16):
            stream.sendall(CONNACK_5)
        else:
            self.while_connecting()
            stream.sendall(NOT_AUTHORIZED)
            self.refused.set()
        read_packet(stream)

    def prepare(self, port: int) -> None:
        store = home_at(self.home.parent, self.authority, port)
        store.promote(put(store, self.authority))
        file = self.home / "agent.toml"
        file.write_text(file.read_text().replace("refused_seconds = 0.02", "refused_seconds = 3600.0"))

    def now(self) -> None:
        store = IdentityStore(self.home)
        fresh = put(store, self.authority)
        store.promote(fresh)
        self._good = fresh.certificate.serial

    def monotonic(self) -> float:
        return time.monotonic() + self.seconds


@pytest.fixture
def replacement(authority: Authority, tmp_path: Path) -> Iterator[Replacement]:
    replacement = Replacement(tmp_path, authority)
    with tls_server(authority, lambda stream: replacement.serve(stream), client_ca=authority) as port:
        replacement.prepare(port)
        yield replacement


def is_refused_once(text: str) -> bool:
    return text.count("cause=refused") == 1


def test_a_certificate_stored_while_a_renewal_ends_is_used_at_once(
    replacement: Replacement, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child finds what `enroll` has just stored, and `enroll` promotes it before the agent reads the outcome."""

    def end() -> Outcome:
        assert replacement.refused.wait(DEADLINE_SECONDS)
        replacement.now()
        return Outcome(ok=True, slot="slot-b")

    monkeypatch.setattr("device_agent.enrollment.rotation.EnrollmentProcess", lambda _: EndedEnrollment(end))
    monkeypatch.setattr(RenewalSchedule, "is_due", lambda _self, identity, _now: identity.slot == "slot-a")
    log = run_until(replacement.home, lambda text: " connected " in text)
    assert is_refused_once(log)
    assert " certificate-received slot=slot-b" in log
    assert " connected slot=slot-b" in log
    assert "renewal-failed" not in log


def test_a_certificate_that_nobody_announces_is_used_within_a_minute(replacement: Replacement) -> None:
    """`enroll` was killed after it had stored the certificate, or asked an agent that did not answer."""

    def hears_of_nothing(text: str) -> bool:
        if is_refused_once(text) and not replacement.seconds:
            replacement.now()
            replacement.seconds = TICK_SECONDS
        return " connected slot=slot-b" in text

    assert is_refused_once(run_until(replacement.home, hears_of_nothing, monotonic=replacement.monotonic))


def test_a_certificate_stored_while_its_predecessor_connects_is_used_at_once(replacement: Replacement) -> None:
    def announce() -> None:
        replacement.now()
        ask(replacement.home, {"do": "prove"}, DEADLINE_SECONDS)

    replacement.while_connecting = announce
    assert is_refused_once(run_until(replacement.home, lambda text: " connected slot=slot-b" in text))


def test_a_candidate_that_another_process_promotes_while_it_connects_is_renewed_in_time(
    authority: Authority, tmp_path: Path
) -> None:
    """The connection was begun for a candidate, and is one of the current identity when it is established."""
    candidates: list[Identity] = []

    def behave(stream: ssl.SSLSocket) -> None:
        read_packet(stream)
        store.promote(candidates[0])
        ask(tmp_path / "a home", {"do": "prove"}, DEADLINE_SECONDS)
        stream.sendall(CONNACK_5)
        while True:  # until the agent leaves: a second connection would ask one that stops
            read_packet(stream)

    def renews(text: str) -> bool:
        if text.endswith("session=new\n"):
            os.kill(os.getpid(), signal.SIGUSR1)
        return " renewing" in text

    with tls_server(authority, behave) as port:
        store = home_at(tmp_path, authority, port)
        store.promote(put(store, authority))
        candidates.append(put(store, authority))
        run_until(tmp_path / "a home", renews)


def test_a_renewal_without_an_agent_leaves_messages_where_they_are(authority: Authority, tmp_path: Path) -> None:
    """It ends before a program could take what the server sends, or the server what a program sends."""
    home, asked = tmp_path / "a home", dict[str, str]()
    sent = b"".join(b"\x32\x08\x00\x03x/y" + number.to_bytes(2) + b"\0" for number in range(1, 21))
    answers = list[bytes]()

    def behave(stream: ssl.SSLSocket) -> None:
        read_packet(stream)
        for request in ({"do": "send", "topic": "t"}, {"do": "subscribe", "topic": "t"}, {"do": "rejected"}):
            try:
                asked[request["do"]] = str(ask(home, request, DEADLINE_SECONDS))
            except NotRunning:
                asked[request["do"]] = "no agent"
        stream.sendall(CONNACK_5 + sent)
        while True:
            answers.append(read_packet(stream)[:1])

    with tls_server(authority, behave) as port:
        store = home_at(tmp_path, authority, port)
        store.promote(put(store, authority))
        candidate = put(store, authority)
        assert renew(read_config(home)) == candidate
    assert answers == [b"\xe0"]  # DISCONNECT, and no PUBACK
    assert asked == dict.fromkeys(("send", "subscribe", "rejected"), "no agent")


def test_a_message_that_the_server_refuses_is_an_exit_code(authority: Authority, tmp_path: Path) -> None:
    """One of two is refused: nothing is left to deliver, and still not every message was delivered."""

    def behave(stream: ssl.SSLSocket) -> None:
        read_packet(stream)
        stream.sendall(CONNACK_5)
        for reason in (b"\x00", b"\x87"):
            packet = read_packet(stream)
            at = 4 + int.from_bytes(packet[1:3])  # [MQTT-3.3.2] no topic alias here: type, topic, packet id
            stream.sendall(b"\x40\x03" + packet[at - 1 : at + 1] + reason)
        read_packet(stream)

    reading, writing = os.pipe()
    os.write(writing, b"one\ntwo\n")
    os.close(writing)
    log = io.StringIO()
    with tls_server(authority, behave) as port:
        store = home_at(tmp_path, authority, port)
        store.promote(put(store, authority))
        source = PublishInput(LineReader(reading), "t", 1, True)
        config = replace(read_config(tmp_path / "a home"), managed=False)  # sends nothing but messages
        assert Runner(config, EventLog(stream=log), source).run() == 1
    os.close(reading)
    assert re.search(r"message-refused reason=.* topic=t id=[0-9a-f]{24}", log.getvalue())
    assert "stopped delivered=1 undelivered=0 refused=1" in log.getvalue().splitlines()[-1]


def test_an_input_of_bad_lines_alone_is_an_exit_code(authority: Authority, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"no/#/wildcards x\n\n")
    os.close(writing)
    log = io.StringIO()
    store = home_at(tmp_path, authority, free_port())
    store.promote(put(store, authority))
    source = PublishInput(LineReader(reading), None, 1, stop_at_end=True)
    assert Runner(read_config(tmp_path / "a home"), EventLog(stream=log), source).run() == 1
    os.close(reading)
    assert [each in log.getvalue() for each in ("line-refused line=1 ", "line-refused line=2 ")] == [True, True]


def test_an_agent_that_waits_at_its_start_says_so_and_connects_on_a_signal(
    authority: Authority, tmp_path: Path
) -> None:
    def behave(stream: ssl.SSLSocket) -> None:
        read_packet(stream)
        stream.sendall(CONNACK_5)
        read_packet(stream)

    said: list[object] = []

    def enough(text: str) -> bool:
        if "connect-delayed" in text and not said:
            said.append("once")
            os.kill(os.getpid(), signal.SIGHUP)
        return " connected " in text

    with tls_server(authority, behave) as port:
        store = home_at(tmp_path, authority, port)
        store.promote(put(store, authority))
        file = tmp_path / "a home" / "agent.toml"
        file.write_text(file.read_text().replace("_seconds = 0.02", "_seconds = 3600.0"))
        identity = store.current()
        assert identity is not None
        (file.parent / "attempts.txt").write_text(f"7 {identity.certificate.fingerprint[:16]}\n")
        log = run_until(file.parent, enough, chance=lambda: 0.5)
    assert 'reason="it waits 1800 s to connect: 7 short connections or starts in a row"' in log


def test_nothing_to_run_with(authority: Authority, tmp_path: Path) -> None:
    home_at(tmp_path, authority, 1)
    with pytest.raises(NotEnrolled):
        Runner(read_config(tmp_path / "a home"), EventLog(stream=io.StringIO())).run()


def test_a_clock_that_jumps_keeps_it_neither_out_nor_without_its_identity(authority: Authority, tmp_path: Path) -> None:
    """At every look it is another year, in the middle of a handshake too."""
    years = itertools.cycle((datetime(1970, 1, 1, tzinfo=UTC), datetime(2050, 1, 1, tzinfo=UTC), None))

    def clock() -> datetime:
        return next(years) or datetime.now(UTC)

    def behave(stream: ssl.SSLSocket) -> None:
        read_packet(stream)
        stream.sendall(CONNACK_5)  # and ends the connection

    with tls_server(authority, behave) as port:
        store = home_at(tmp_path, authority, port)
        store.promote(put(store, authority))
        before = store.current()
        run_until(tmp_path / "a home", lambda text: text.count(" connected ") > 3, clock=clock)
    assert store.current() == before


def test_another_server_takes_over(authority: Authority, tmp_path: Path) -> None:
    """The first is down, the second is a stranger's, the third is ours."""
    stranger = Authority(tmp_path / "stranger")

    def behave(stream: ssl.SSLSocket) -> None:
        read_packet(stream)
        stream.sendall(CONNACK_5)
        read_packet(stream)

    with tls_server(stranger, behave) as strange, tls_server(authority, behave) as port:
        store = home_at(tmp_path, authority, free_port())
        file = tmp_path / "a home" / "agent.toml"
        servers = [f"localhost:{strange}", f"mqtts://127.0.0.1:{port}"]
        text = file.read_text().replace("cap_seconds = 0.02", "cap_seconds = 3600.0")
        text = text.replace("base_seconds = 0.02", "base_seconds = 3600.0")  # a wait would be seen
        file.write_text(text.replace('# servers = ["mqtt2', f"servers = {servers} #"))
        store.promote(put(store, authority))
        log = run_until(tmp_path / "a home", lambda text: " connected " in text)
    failed = [line for line in log.splitlines() if "connect-failed" in line]
    assert ["cause=network" in failed[0], "cause=untrusted" in failed[1], len(failed)] == [True, True, 2]
    assert all("retry_seconds=0.0" in line for line in failed)


def test_a_clock_that_is_ahead_is_corrected_by_est_and_it_connects(tmp_path: Path) -> None:
    """By our clock the certificates of both servers are over. EST's own time says that they are not."""
    authority = Authority(tmp_path / "old ca", made_days_ago=SERVER_LIFETIME.days + 10)
    true = datetime.now(UTC) - timedelta(days=20)

    def mqtt(stream: ssl.SSLSocket) -> None:
        read_packet(stream)
        stream.sendall(CONNACK_5)
        read_packet(stream)

    body = base64.b64encode(encode_certs_only((authority.root, authority.issuing)))
    date = f"Date: {format_datetime(true, usegmt=True)}"
    est = answers(http("200 OK", body, "Content-Type: application/pkcs7-mime", date))
    with tls_server(authority, mqtt) as port, tls_server(authority, est) as est_port:
        store = home_at(tmp_path, authority, port)
        file = tmp_path / "a home" / "agent.toml"
        file.write_text(file.read_text().replace("https://localhost:1", f"https://localhost:{est_port}"))
        certificate, key = authority.issue("cam-7", begin=true - timedelta(days=1), end=true + timedelta(days=90))
        slot = store.spare_slot()
        store.write_key(slot, key_pem(key))
        info = certificate_info(certificate, "cam-7", certificate.not_valid_before_utc)
        store.promote(store.complete(slot, pem(certificate, authority.issuing), info))
        log = run_until(tmp_path / "a home", lambda text: " connected " in text)
    assert "untrusted" in log
    assert re.search(r"clock-corrected system_ahead_seconds=1728\d\d\d", log)
