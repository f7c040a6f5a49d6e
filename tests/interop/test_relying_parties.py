"""Programs of others accept a device, and refuse it once it is revoked and they have read the next CRL."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.interop.relying_parties import PARTIES, Person, Published, freeradius, haproxy, mosquitto, nginx
from tests.interop.stock_device import StockDevice
from tests.serving import Served, run_fleet, start
from tests.waiting import wait_until


@dataclass
class Fleet:
    served: Served
    published: Published
    good: StockDevice
    folder: Path

    def device(self, name: str) -> StockDevice:
        return StockDevice(self.served, name, self.folder)

    def revoke(self, device: StockDevice) -> None:
        """Returns when it is in the published CRL."""
        before = (self.published.folder / "trust.pem").read_bytes()
        run_fleet(self.served.home, "device", "revoke", device.name, "--reason", "keyCompromise")
        wait_until(
            lambda: (self.published.folder / "trust.pem").read_bytes() != before, "the CRL is not published anew"
        )


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("relying")
    home = folder / "home"
    run_fleet(home, "init")
    served = Served(home, folder / "ready.json").start()
    try:
        server = home / "server"
        published = Published(folder / "published", server / "server.pem", server / "server.key", served.ca_file)
        following = start(
            "fleet publish", "-m", "fleet", "publish", "--home", str(home), str(published.folder), "--follow"
        )
        try:
            wait_until((published.folder / "trust.pem").exists, "nothing is published")
            yield Fleet(served, published, StockDevice(served, "good", folder), folder)
        finally:
            assert following.stop() == 0
    finally:
        served.stop()


@pytest.mark.parametrize("program", PARTIES)
def test_a_device_is_let_in_until_it_is_revoked(program: str, fleet: Fleet, tmp_path: Path) -> None:
    device = fleet.device(f"{program}-1")
    with PARTIES[program](tmp_path, fleet.published) as party:
        assert party.accepts(device)
        assert party.accepts(fleet.good)
        fleet.revoke(device)
        party.read_crls()
        assert not party.accepts(device)
        assert party.accepts(fleet.good)


def test_no_resumed_tls_session_lets_a_revoked_device_in(fleet: Fleet, tmp_path: Path) -> None:
    device = fleet.device("resumes-1")
    for program in ("nginx", "haproxy", "mosquitto"):
        (tmp_path / program).mkdir()
    with (
        nginx(tmp_path / "nginx", fleet.published) as one,
        haproxy(tmp_path / "haproxy", fleet.published) as other,
        mosquitto(tmp_path / "mosquitto", fleet.published) as broker,
    ):
        sessions = [party.sessions(device) for party in (one, other, broker)]
        # mosquitto resumes them, but none from before it has read its CRLs again.
        assert [each.answers() for each in sessions] == [[(False, True)] * 2] * 2 + [[(True, True)] * 2]
        fleet.revoke(device)
        for party in (one, other, broker):
            party.read_crls()
        assert [each.answers() for each in sessions] == [[(False, False)] * 2] * 3


@pytest.mark.long
def test_a_person_is_let_into_the_network_by_the_p12_of_our_page_until_it_is_revoked(
    fleet: Fleet, tmp_path: Path
) -> None:
    home = fleet.served.home
    names = ("--email", "{id}@example.com", "--upn", "{id}@corp.example.com")
    run_fleet(home, "model", "add", "laptop", *names, "--eku", "clientAuth", "--eku", "eapOverLAN")
    jane = StockDevice(fleet.served, "jane.doe", fleet.folder, "laptop")
    chain, password = tmp_path / "jane.pem", tmp_path / "password"
    chain.write_bytes(b"".join(each.read_bytes() for each in (jane.key, jane.certificate, fleet.published.root)))
    password.write_text("of her laptop\n")
    made = tmp_path / "jane.p12"
    run_fleet(home, "cert", "convert", str(chain), str(made), "--out-password-file", str(password))
    with freeradius(tmp_path, fleet.published) as network:
        person = Person(made, "of her laptop", "jane.doe@corp.example.com")
        assert network.lets_in(person)
        assert not network.lets_in(replace(person, password="another"))
        fleet.revoke(jane)
        network.read_crls()
        assert not network.lets_in(person)
        assert network.accepts(fleet.good)
