"""EST with a clock that is wrong, and with several servers: over real TLS."""

import base64
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography import x509

from device_agent.cli import cli
from device_agent.config.agent_config import AgentConfig, NewHome, read_config, write_config
from device_agent.link.clock import DeviceClock, Uptime
from device_agent.link.est_access import first_to_answer
from device_agent.store.device_key import certificate_info
from device_agent.store.identity_store import IdentityStore
from fleet.ca.authority import SERVER_LIFETIME
from fleet.est_client.client import EstClient, Policy
from fleet.est_client.errors import EstError, EstUnreachable, EstUntrusted
from tests.certs_only import encode_certs_only
from tests.device_agent.fleet_parts import Authority, key_pem, pem
from tests.device_agent.wild_servers import Behavior, answers, http, tls_server
from tests.free_ports import free_port

REAL = datetime.now(UTC)
TRUE = REAL - timedelta(days=20)
"""The time that the server says: our clock, which is the real one, is 20 days ahead of it."""


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A CA whose server's certificate has expired by our clock, and has not by the server's."""
    age = SERVER_LIFETIME + timedelta(days=10)
    return Authority(tmp_path_factory.mktemp("old") / "ca", made_days_ago=age.days)


def says(authority: Authority, at: datetime | str) -> Behavior:
    date = at if isinstance(at, str) else format_datetime(at, usegmt=True)
    body = base64.b64encode(encode_certs_only((authority.root, authority.issuing)))
    return answers(http("200 OK", body, "Content-Type: application/pkcs7-mime", f"Date: {date}"))


class Home:
    def __init__(self, folder: Path, authority: Authority, *ports: int) -> None:
        file = write_config(
            folder / "home",
            NewHome("cam-7", f"https://localhost:{ports[0]}", "h", 1, authority.ca_file.read_bytes()),
        )
        others = [f"https://localhost:{port}" for port in ports[1:]]
        file.write_text(file.read_text().replace('# servers = ["https://est2', f"servers = {others} #"))
        self.config: AgentConfig = read_config(folder / "home")
        self.clock = DeviceClock(folder / "home", lambda: REAL, lambda: Uptime("boot", 5.0))
        self.asked: list[str] = []

    def client(self, url: str) -> EstClient:
        self.asked.append(url)
        check_time, at = self.clock.judges_dates()
        return EstClient(url, self.config.ca_file, policy=Policy(20, 0, check_time=check_time, at=at))

    def cacerts(self) -> list[x509.Certificate]:
        return first_to_answer(self.config, self.clock, self.client, lambda client: client.cacerts())[2]


def test_where_dates_are_the_obstacle_the_servers_time_is_taken(old: Authority, tmp_path: Path) -> None:
    with tls_server(old, says(old, TRUE)) as port:
        home = Home(tmp_path, old, port)
        assert len(home.cacerts()) == 2
        assert home.clock.reading().corrected
        assert abs(home.clock.reading().now - TRUE) < timedelta(seconds=2)
        assert len(home.cacerts()) == 2  # by the corrected clock, at the first request
        assert len(home.asked) == 3


@pytest.mark.parametrize("date", ["", "yesterday", "Mon, 99 Foo 2026 25:61:61 GMT", REAL, REAL - timedelta(days=2000)])
def test_a_server_whose_certificate_has_really_expired_stays_refused(
    old: Authority, tmp_path: Path, date: datetime | str
) -> None:
    """It agrees with our clock, or says no time, or one that its own certificate does not cover, or below the floor."""
    with tls_server(old, says(old, date)) as port:
        home = Home(tmp_path, old, port)
        with pytest.raises(EstUntrusted, match="expired"):
            home.cacerts()
        assert not home.clock.reading().corrected


def test_no_stranger_sets_the_clock(old: Authority, authority: Authority, tmp_path: Path) -> None:
    with tls_server(old, says(old, TRUE)) as port:
        home = Home(tmp_path, authority, port)
        with pytest.raises(EstUntrusted):
            home.cacerts()
        assert not home.clock.reading().corrected


def test_a_clock_that_is_not_set_takes_the_time_of_the_first_answer(authority: Authority, tmp_path: Path) -> None:
    """hw_bench's model of a device does the same: tests/hw_bench/test_fleet_year.py."""
    with tls_server(authority, says(authority, REAL)) as port:
        home = Home(tmp_path, authority, port)
        home.clock = DeviceClock(tmp_path / "home", lambda: datetime.fromtimestamp(0, UTC), lambda: Uptime("boot", 5.0))
        assert not home.clock.reading().is_set
        home.cacerts()
        assert home.clock.reading().is_set
        assert abs(home.clock.now() - REAL) < timedelta(minutes=5)


def test_nobody_sets_it_below_the_floor(old: Authority, tmp_path: Path) -> None:
    with tls_server(old, says(old, TRUE)) as port:
        home = Home(tmp_path, old, port)
        home.clock.own_begin = TRUE + timedelta(days=1)
        with pytest.raises(EstUntrusted):
            home.cacerts()
        assert not home.clock.reading().corrected


def test_a_valid_server_corrects_a_clock_that_is_weeks_behind(authority: Authority, tmp_path: Path) -> None:
    """No date is an obstacle, but renewals would come too late."""
    with tls_server(authority, says(authority, REAL + timedelta(days=20))) as port:
        home = Home(tmp_path, authority, port)
        home.cacerts()
        assert home.clock.reading().corrected


def test_status_judges_by_the_corrected_clock(old: Authority, tmp_path: Path) -> None:
    """A certificate that has expired by the system's clock alone."""
    with tls_server(old, says(old, TRUE)) as port:
        home = Home(tmp_path, old, port)
        home.clock = DeviceClock(home.config.home, lambda: datetime.now(UTC))
        home.cacerts()
    store = IdentityStore(home.config.home)
    certificate, key = old.issue("cam-7", begin=TRUE - timedelta(days=9), end=TRUE + timedelta(days=9))
    store.write_key("slot-a", key_pem(key))
    store.promote(store.complete("slot-a", pem(certificate, old.issuing), certificate_info(certificate, "cam-7", TRUE)))
    done = CliRunner().invoke(cli, ["--home", str(home.config.home), "status"])
    assert done.exit_code == 0, done.output


def test_the_next_server_is_asked(authority: Authority, tmp_path: Path) -> None:
    with (
        tls_server(authority, answers(b"no HTTP\r\n\r\n")) as broken,
        tls_server(authority, says(authority, REAL)) as good,
    ):
        home = Home(tmp_path, authority, free_port(), broken, good)
        assert len(home.cacerts()) == 2
        assert home.asked == list(home.config.est_urls)


def test_the_last_servers_failure_is_the_answer(authority: Authority, tmp_path: Path) -> None:
    home = Home(tmp_path, authority, free_port(), free_port())
    with pytest.raises(EstUnreachable, match=str(home.config.est_urls[1].rsplit(":")[-1])):
        home.cacerts()


def test_a_refusal_is_final(authority: Authority, tmp_path: Path, no: Callable[[], Behavior]) -> None:
    with tls_server(authority, no()) as port:
        home = Home(tmp_path, authority, port, free_port())
        with pytest.raises(EstError):
            home.cacerts()
        assert len(home.asked) == 1


@pytest.fixture(params=["403 Forbidden", "503 Service Unavailable"])
def no(request: pytest.FixtureRequest) -> Callable[[], Behavior]:
    return lambda: answers(http(request.param, b"", "Retry-After: 3600"))
