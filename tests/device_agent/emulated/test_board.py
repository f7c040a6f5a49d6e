"""The board on an agent's home: what it makes of each request, and of a power cut at each change of its disk."""

import stat
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from device_agent.config.agent_config import NewHome, read_config, write_config
from device_agent.emulated.board import Hardware, HomeBoard
from device_agent.store.device_key import load_key
from device_agent.store.identity_store import IdentityStore
from fleet.est_client.arguments import AGENT_KEY_TYPES
from fleet.wire.csr import Csr, decode_csr
from fleet.wire.serial import messages as m
from fleet.wire.serial.dialogue.errors import BadBoard, BoardRefused
from fleet.wire.serial.dialogue.events import Provisioned, ProvisioningData, ProvisioningOrder
from fleet.wire.serial.messages import FailureCode
from tests.firmware_tools.boards import LocalAuthority
from tests.wire.serial_line import Factory

pytestmark = pytest.mark.usefixtures("forked_programs")
HARDWARE = Hardware("SN-0001", "pump", "1.0")
ORDER = ProvisioningOrder("pump-7", station="line-1")


class PowerCut(BaseException):
    """The process is gone."""


@dataclass
class Bench:
    """A home, boards that boot on it, and an authority."""

    home: Path
    authority: LocalAuthority = field(default_factory=LocalAuthority)
    est_url: str = "https://est.example"
    now: datetime | None = None

    def boot(self, steps: Iterator[int] | None = None) -> HomeBoard:
        """A board that loses its power when `steps` ends."""

        def step(_: str) -> None:
            if steps is not None and next(steps, None) is None:
                raise PowerCut

        return HomeBoard(self.home, HARDWARE, lambda: self.now or datetime.now(UTC), step)

    def delivery(self, csr: bytes) -> ProvisioningData:
        leaf = self.authority.simpleenroll(csr)
        return ProvisioningData(
            (leaf, self.authority.issuing), (self.authority.root,), self.est_url, "mqtt.example", 8883
        )

    def run(self, board: HomeBoard | None = None, order: ProvisioningOrder = ORDER) -> Csr:
        """A whole run, in memory; the CSR that was enrolled."""
        bench = self

        class Line(Factory):
            def enroll(self, csr: Csr) -> ProvisioningData:
                self.enrolled.append(csr)
                return bench.delivery(csr.der)

        line = Line(board=board or self.boot(), order=order)
        assert isinstance(line.run()[-1], Provisioned)
        return line.enrolled[-1]

    def state(self) -> tuple[str, str]:
        info = self.boot().device_info()
        return info.state, info.device_id


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "home")


def identity(delivery: ProvisioningData) -> ProvisioningData:
    return ProvisioningData(delivery.chain, delivery.anchors, delivery.est_url, delivery.mqtt_host, delivery.mqtt_port)


def refused(code: FailureCode) -> "pytest.RaisesExc[BoardRefused]":
    return pytest.RaisesExc(BoardRefused, check=lambda error: error.code == code)


def test_a_provisioned_board_is_a_devices_home(bench: Bench) -> None:
    assert bench.state() == (m.BLANK, "")
    assert not bench.home.exists()  # a greeting changes nothing
    csr = bench.run()
    assert bench.state() == (m.PROVISIONED, "pump-7")
    config = read_config(bench.home)
    assert (config.device_id, config.hardware_serial) == ("pump-7", "SN-0001")
    assert (config.est_url, config.mqtt_host, config.mqtt_port) == ("https://est.example", "mqtt.example", 8883)
    assert config.ca_file.read_bytes() == bench.authority.root.public_bytes(Encoding.PEM)
    current = IdentityStore(bench.home).current()
    assert current is not None
    assert load_key(current.key_file).public_key() == bench.authority.simpleenroll(csr.der).public_key()
    assert current.certificate.device_id == "pump-7"
    assert stat.S_IMODE(current.key_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(bench.home.stat().st_mode) == 0o700
    assert IdentityStore(bench.home).candidate() is None
    assert not (bench.home / "board.json").exists()
    assert dict(csr.subject) == {"2.5.4.3": "pump-7", "2.5.4.5": "SN-0001"}


def test_power_lost_at_each_change_of_the_disk(tmp_path: Path) -> None:
    """Whatever the cut left, the next run succeeds, with the same key if a CSR has left the board before."""
    cuts = 0
    while True:
        bench = Bench(tmp_path / str(cuts))
        try:
            bench.run(bench.boot(iter(range(cuts))))
        except PowerCut:
            issued = dict(bench.authority.issued)
            bench.run()
            assert bench.state() == (m.PROVISIONED, "pump-7")
            assert not issued or bench.authority.issued == issued
            cuts += 1
            continue
        break
    assert cuts > 20


def test_power_lost_while_one_identity_replaces_another(tmp_path: Path) -> None:
    other = replace(ORDER, device_id="pump-8", replace=True)
    cuts = 0
    while True:
        bench = Bench(tmp_path / str(cuts))
        bench.run()
        try:
            bench.run(bench.boot(iter(range(cuts))), other)
        except PowerCut:
            # Either device or none, never a blend of both.
            state, device_id = bench.state()
            current = IdentityStore(bench.home).current()
            assert current is not None
            if state == m.PROVISIONED:
                assert device_id == current.certificate.device_id
            bench.run(order=other)
            assert bench.state() == (m.PROVISIONED, "pump-8")
            assert read_config(bench.home).device_id == "pump-8"
            cuts += 1
            continue
        break
    assert cuts > 20


def test_the_same_device_again_keeps_its_key_and_changes_nothing(bench: Bench) -> None:
    first = bench.run()
    before = {path: path.read_bytes() for path in bench.home.rglob("*") if path.is_file()}
    again = bench.run()
    assert again.key_sha256 == first.key_sha256
    assert {path: path.read_bytes() for path in bench.home.rglob("*") if path.is_file()} == before


def test_the_same_device_with_a_new_certificate_and_new_settings(bench: Bench) -> None:
    first = bench.run()
    bench.authority.issued.clear()
    bench.est_url = "https://est2.example"
    again = bench.run()
    assert again.key_sha256 == first.key_sha256
    current = IdentityStore(bench.home).current()
    assert current is not None
    [issued] = bench.authority.issued.values()
    assert current.certificate.fingerprint == issued.fingerprint(hashes.SHA256()).hex()
    assert read_config(bench.home).est_url == "https://est2.example"


def test_another_identity_is_given_up_only_when_told(bench: Bench) -> None:
    first = bench.run()
    other = replace(ORDER, device_id="pump-8")
    with pytest.raises(BadBoard):  # already by its greeting
        bench.run(order=other)
    with refused(FailureCode.ALREADY_PROVISIONED):
        bench.boot().make_key("pump-8", "EC-P256", False)
    assert bench.state() == (m.PROVISIONED, "pump-7")
    second = bench.run(order=replace(other, replace=True))
    assert second.key_sha256 != first.key_sha256
    assert bench.state() == (m.PROVISIONED, "pump-8")
    assert sorted(path.name for path in bench.home.glob("slot-*/key.pem")) == ["key.pem"]


def test_a_key_is_never_shared_by_two_device_ids(bench: Bench) -> None:
    board = bench.boot()
    seven = decode_csr(board.make_key("pump-7", "EC-P256", False))
    assert bench.state() == (m.PENDING, "pump-7")
    assert decode_csr(bench.boot().make_key("pump-7", "EC-P256", False)).key_sha256 == seven.key_sha256
    eight = decode_csr(bench.boot().make_key("pump-8", "EC-P256", False))
    assert eight.key_sha256 != seven.key_sha256
    assert bench.state() == (m.PENDING, "pump-8")


def test_a_kind_of_key_that_was_not_there(bench: Bench) -> None:
    board = bench.boot()
    first = decode_csr(board.make_key("pump-7", "EC-P256", False))
    second = decode_csr(board.make_key("pump-7", "Ed25519", False))
    assert (first.key_type, second.key_type) == ("EC-P256", "Ed25519")
    with refused(FailureCode.UNSUPPORTED):
        board.make_key("pump-7", "ROT13", False)
    with refused(FailureCode.REFUSED):
        board.make_key("pump/7", "EC-P256", False)


@pytest.mark.parametrize("key_type", AGENT_KEY_TYPES)
def test_each_kind_of_key_is_made_and_proved(bench: Bench, key_type: str) -> None:
    assert bench.run(order=replace(ORDER, key_type=key_type)).key_type == key_type
    assert bench.state() == (m.PROVISIONED, "pump-7")


def test_a_certificate_that_is_not_ours(bench: Bench) -> None:
    board = bench.boot()
    csr = board.make_key("pump-7", "EC-P256", False)
    good = identity(bench.delivery(csr))
    with refused(FailureCode.KEY_MISMATCH):
        board.install(replace(good, chain=(bench.authority.issuing,)))
    with refused(FailureCode.BAD_CERTIFICATE):  # somebody else's root
        board.install(replace(good, anchors=(LocalAuthority().root,)))
    with refused(FailureCode.BAD_CERTIFICATE):  # a link is missing
        board.install(replace(good, chain=good.chain[:1]))
    bench.now = datetime.now(UTC) + timedelta(days=60)
    with refused(FailureCode.BAD_CERTIFICATE):
        board.install(good)
    bench.now = None
    assert IdentityStore(bench.home).candidate() is None
    assert board.install(good) == good.chain[0].fingerprint(hashes.SHA256())


def test_nothing_out_of_order(bench: Bench) -> None:
    board = bench.boot()
    delivery = bench.delivery(Bench(bench.home.parent / "other").boot().make_key("pump-7", "EC-P256", False))
    for early in (lambda: board.install(identity(delivery)), lambda: board.sign(b"x"), board.activate):
        with refused(FailureCode.OUT_OF_ORDER):
            early()


def test_a_board_that_another_process_is_changing(bench: Bench) -> None:
    bench.home.mkdir(mode=0o700)
    with IdentityStore(bench.home).lock(), refused(FailureCode.STORAGE):
        bench.boot().make_key("pump-7", "EC-P256", False)


def test_a_home_made_by_hand_and_never_enrolled(bench: Bench) -> None:
    write_config(bench.home, NewHome("pump-1", "https://old", "old", 1883, b"x"))
    assert bench.state() == (m.BLANK, "")
    bench.run()
    assert read_config(bench.home).device_id == "pump-7"


def test_a_damaged_home_is_refused_with_its_reason(bench: Bench) -> None:
    bench.run()
    (bench.home / "agent.toml").write_text("device_id = \n")
    with pytest.raises(BoardRefused, match=r"agent\.toml"):
        bench.boot().device_info()


def test_a_disk_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")
    with refused(FailureCode.STORAGE):
        HomeBoard(tmp_path / "home", HARDWARE, lambda: datetime.now(UTC)).make_key("pump-7", "EC-P256", False)
