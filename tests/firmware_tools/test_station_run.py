"""One run of the station over a line in memory: what it writes down, whom it asks how often, how it fails."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from firmware_tools.station.errors import LedgerError, LinkError, StationError, Stopped
from firmware_tools.station.ledger import FAILED, ISSUED, PROVISIONED, Ledger
from firmware_tools.station.run import Environment, ProvisioningJob, ProvisioningRun, failure_code, station_name
from fleet.est_client.errors import EstBadAnswer, EstBusy, EstError, EstRefused, EstUnreachable, EstUntrusted
from fleet.wire.serial import messages as m
from fleet.wire.serial.dialogue.device import DeviceDialogue
from fleet.wire.serial.dialogue.errors import BadBoard, BoardRefused, DialogueError, NoAnswer
from fleet.wire.serial.dialogue.events import ProvisioningOrder
from fleet.wire.serial.frames import FrameReader
from fleet.wire.serial.messages import FailureCode, decode
from tests.firmware_tools.boards import LocalAuthority
from tests.wire.serial_line import MemoryBoard

ORDER = ProvisioningOrder("pump-7", station="line-1")
JOB = ProvisioningJob(ORDER, "pump", "https://est.example", "mqtt.example", 8883, "/dev/ttyX")


@dataclass
class MemoryLink:
    """A line with a board at its end. Time passes while nothing arrives."""

    board: MemoryBoard
    restart_after: int = 0
    silent_after: int = -1
    now: float = 0.0
    sent: bytes = b""
    reads: int = 0
    waiting: bytes = b""

    def __post_init__(self) -> None:
        self.device = DeviceDialogue(self.board)

    def write(self, data: bytes) -> None:
        self.sent += data
        if not data or 0 <= self.silent_after <= self.reads:
            return
        self.waiting += self.device.feed(data)

    def read(self, timeout_seconds: float) -> bytes:
        self.reads += 1
        if self.reads == self.restart_after:
            self.device = DeviceDialogue(self.board)
            self.waiting = b"boot\r\n"
        data, self.waiting = self.waiting, b""
        if not data:
            self.now += timeout_seconds
        return data

    def monotonic(self) -> float:
        return self.now

    def last_word(self) -> m.Body:
        return decode(FrameReader().feed(self.sent)[-1]).body


@dataclass
class Bench:
    ledger: Ledger
    board: MemoryBoard = field(default_factory=MemoryBoard)
    authority: LocalAuthority = field(default_factory=LocalAuthority)
    said: list[str] = field(default_factory=list)

    def run(self, link: MemoryLink | None = None, job: ProvisioningJob = JOB) -> ProvisioningRun:
        self.link = link or MemoryLink(self.board)
        return ProvisioningRun(
            job,
            self.link,
            self.authority,
            ledger=self.ledger,
            report=lambda step, text: self.said.append(f"{step}: {text}"),
            environment=Environment(monotonic=self.link.monotonic),
        )

    def events(self) -> list[object]:
        return [row["event"] for row in self.ledger.rows()]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(Ledger(tmp_path / "ledger"))


def test_the_row_says_it_all(bench: Bench) -> None:
    row = bench.run().provision()
    assert bench.board.active
    certificate = bench.board.active.chain[0]
    assert row.event == PROVISIONED
    assert (row.device_id, row.model, row.hardware_serial, row.board_model) == ("pump-7", "pump", "SN-0001", "pump")
    assert (row.station, row.port, row.code) == ("line-1", "/dev/ttyX", "")
    assert row.fingerprint == certificate.fingerprint(hashes.SHA256()).hex()
    assert row.certificate_serial == f"{certificate.serial_number:x}"
    assert len(row.key_sha256) == 64
    assert row.not_after.endswith("Z")
    assert bench.events() == [ISSUED, PROVISIONED]
    assert bench.authority.labels == ["pump"]
    assert [line.split(":")[0] for line in bench.said] == [
        "hello",
        "hello",
        "csr",
        "enroll",
        "write",
        "write",
        "install",
        "prove",
        "finish",
    ]
    assert bench.board.active.chain[1:] == (bench.authority.issuing,)
    assert bench.board.active.anchors == (bench.authority.root,)


def test_no_model_is_no_label(bench: Bench) -> None:
    bench.run(job=replace(JOB, model="")).provision()
    assert bench.authority.labels == [None]


@pytest.mark.parametrize("restart", range(2, 14))
def test_a_board_that_restarts_is_enrolled_once(bench: Bench, restart: int) -> None:
    bench.run(MemoryLink(bench.board, restart_after=restart)).provision()
    assert len(bench.authority.labels) == 1
    assert bench.events() == [ISSUED, PROVISIONED]


def test_run_again_after_success_and_failure(bench: Bench) -> None:
    with pytest.raises(NoAnswer):
        bench.run(MemoryLink(bench.board, silent_after=6)).provision()
    first = bench.run().provision()
    again = bench.run().provision()
    assert again.certificate_serial == first.certificate_serial
    assert again.key_sha256 == first.key_sha256
    assert bench.events()[-4:] == [ISSUED, PROVISIONED, ISSUED, PROVISIONED]
    assert FAILED in bench.events()


def fails(
    bench: Bench, kind: type[Exception], code: str, link: MemoryLink | None = None, job: ProvisioningJob = JOB
) -> ProvisioningRun:
    """The run fails, the ledger says how, and the board is told unless it said no itself."""
    run = bench.run(link, job)
    with pytest.raises(kind) as caught:
        run.provision()
    assert isinstance(caught.value, DialogueError | EstError | StationError)
    assert failure_code(caught.value) == code
    assert run.row.event == FAILED
    last = list(bench.ledger.rows())[-1]
    assert (last["event"], last["code"]) == (FAILED, code)
    assert last["message"] == caught.value.message
    assert isinstance(bench.link.last_word(), m.Abort)
    assert bench.board.active is None
    return run


def test_a_liar(bench: Bench) -> None:
    class Liar(MemoryBoard):
        def sign(self, octets: bytes) -> bytes:
            return b"trust me"

    run = fails(bench, BadBoard, "bad-proof", MemoryLink(Liar()))
    assert run.row.certificate_serial  # so that it can be revoked
    assert bench.events() == [ISSUED, FAILED]


def test_a_board_that_refuses(bench: Bench) -> None:
    class Full(MemoryBoard):
        def make_key(self, device_id: str, key_type: str, replace: bool) -> bytes:
            raise BoardRefused(FailureCode.STORAGE, "flash worn out")

    fails(bench, BoardRefused, "storage", MemoryLink(Full()))


def test_a_silent_board(bench: Bench) -> None:
    fails(bench, NoAnswer, "no-answer", MemoryLink(bench.board, silent_after=0))
    assert bench.link.now == pytest.approx(30.0)


def test_the_time_for_the_whole_run(bench: Bench) -> None:
    fails(bench, Stopped, "timeout", MemoryLink(bench.board, silent_after=0), replace(JOB, timeout_seconds=7.0))
    assert bench.link.now == pytest.approx(7.0)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (EstRefused("no", status=403), "est-refused"),
        (EstUnreachable("gone"), "est-unreachable"),
        (EstUntrusted("who?"), "est-untrusted"),
        (EstBusy("later"), "est-busy"),
        (EstBadAnswer("what?"), "est-bad-answer"),
    ],
)
def test_the_authority_says_no(bench: Bench, error: EstError, code: str) -> None:
    class Refusing(LocalAuthority):
        def simpleenroll(self, csr_der: bytes, label: str | None = None) -> x509.Certificate:
            raise error

    bench.authority = Refusing()
    fails(bench, type(error), code)


def test_an_authority_that_answers_with_something_else(bench: Bench) -> None:
    good = bench.authority

    class Mixing(LocalAuthority):
        def simpleenroll(self, csr_der: bytes, label: str | None = None) -> x509.Certificate:
            return good.simpleenroll(csr_der)  # of another CA than cacerts says

    bench.authority = Mixing()
    fails(bench, EstBadAnswer, "est-bad-answer")


def test_a_certificate_that_has_expired(bench: Bench) -> None:
    run = ProvisioningRun(
        JOB,
        MemoryLink(bench.board),
        bench.authority,
        environment=Environment(clock=lambda: datetime.now(UTC) + timedelta(days=60), monotonic=lambda: 0.0),
    )
    with pytest.raises(EstBadAnswer):
        run.provision()
    assert bench.board.stored is None


def test_ctrl_c(bench: Bench) -> None:
    class Interrupted(LocalAuthority):
        def cacerts(self, label: str | None = None) -> list[x509.Certificate]:
            raise KeyboardInterrupt

    bench.authority = Interrupted()
    fails(bench, Stopped, "stopped")


def test_a_board_that_the_ledger_knows_as_another(bench: Bench) -> None:
    bench.run().provision()
    bench.board = MemoryBoard()  # wiped
    other = replace(JOB, order=replace(ORDER, device_id="pump-8"))
    fails(bench, LedgerError, "board-known", MemoryLink(bench.board), other)
    assert bench.authority.labels == ["pump"]
    forced = replace(other, order=replace(other.order, replace=True))
    assert bench.run(job=forced).provision().device_id == "pump-8"


def test_a_device_id_that_another_board_has(bench: Bench) -> None:
    bench.run().provision()
    bench.board = MemoryBoard(serial="SN-0002")
    fails(bench, LedgerError, "device-id-taken", MemoryLink(bench.board))


def test_nothing_goes_down_that_is_not_in_the_ledger(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    run = bench.run()
    run._ledger = Ledger(tmp_path / "folder")
    with pytest.raises(LedgerError, match="cannot be read"):
        run.provision()
    assert bench.authority.labels == []

    class Breaking(Ledger):
        def append(self, row: object) -> None:
            raise LedgerError("ledger-failed", "The disk is full.")

    run = bench.run()
    run._ledger = Breaking(tmp_path / "other")
    with pytest.raises(LedgerError) as caught:
        run.provision()
    assert "The disk is full." in str(caught.value.__notes__)
    assert bench.board.stored is None


def test_a_port_that_is_lost_and_cannot_be_told(bench: Bench) -> None:
    class Cut(MemoryLink):
        def read(self, timeout_seconds: float) -> bytes:
            self.write = self.gone  # type: ignore[method-assign]
            raise LinkError("port-lost", "gone")

        def gone(self, data: bytes) -> None:
            raise LinkError("port-lost", "gone")

    with pytest.raises(LinkError) as caught:
        bench.run(Cut(bench.board)).provision()
    assert "could not be notified" in caught.value.__notes__[0]
    assert bench.events() == [FAILED]


def test_without_a_ledger() -> None:
    link = MemoryLink(MemoryBoard())
    run = ProvisioningRun(JOB, link, LocalAuthority(), environment=Environment(monotonic=link.monotonic))
    assert run.provision().event == PROVISIONED


def test_a_stations_name() -> None:
    assert station_name([LocalAuthority().root]) == "root"
    assert station_name([]) == ""


def test_each_failure_has_a_word() -> None:
    words: list[Callable[[], str]] = [
        lambda: failure_code(NoAnswer(FailureCode.STOPPED, "")),
        lambda: failure_code(EstBadAnswer("")),
        lambda: failure_code(EstUnreachable("")),
        lambda: failure_code(LinkError("port-lost", "")),
    ]
    assert [word() for word in words] == ["no-answer", "est-bad-answer", "est-unreachable", "port-lost"]
