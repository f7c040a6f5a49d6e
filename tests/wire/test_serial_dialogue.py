"""Station joined to board with no I/O: every frame lost, doubled, late or damaged; every kind of liar."""

import datetime as dt
import hashlib
import itertools
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from fleet.wire.csr import Csr, build_csr
from fleet.wire.serial import messages as m
from fleet.wire.serial import possession
from fleet.wire.serial.dialogue.device import EXPECTS, DeviceDialogue, Identity, State
from fleet.wire.serial.dialogue.errors import BadBoard, BoardRefused, DialogueError, NoAnswer, WrongIdentity
from fleet.wire.serial.dialogue.events import CsrReceived, Delivery, Event, Order, Proved, Provisioned, Restarted
from fleet.wire.serial.dialogue.station import ANSWERS, SESSIONS_MAX, StationDialogue
from fleet.wire.serial.frames import FrameReader, encode_frame
from fleet.wire.serial.messages import FailureCode, Message, decode, encode

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
ORDER = Order("pump-7", station="line-1")
CA_KEY = ec.generate_private_key(ec.SECP256R1())


def certificate(name: str, public_key: ec.EllipticCurvePublicKey, issuer: str = "ca") -> x509.Certificate:
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW)
        .not_valid_after(NOW + dt.timedelta(days=1))
        .sign(CA_KEY, hashes.SHA256())
    )


CA = certificate("ca", CA_KEY.public_key())


@dataclass
class MemoryBoard:
    """A board whose flash is this object: what it keeps survives a new DeviceDialogue."""

    serial: str = "SN-0001"
    csr_serial: str = ""
    chunk_size_max: int = 256
    key: ec.EllipticCurvePrivateKey | None = None
    signing_key: ec.EllipticCurvePrivateKey | None = None
    stored: Identity | None = None
    active: Identity | None = None
    device_id: str = ""
    keys_made: int = 0

    def facts(self) -> m.Facts:
        state = m.PROVISIONED if self.active else m.PENDING if self.key else m.BLANK
        return m.Facts(9, self.serial, "pump", "1.0", ("EC-P256",), self.chunk_size_max, state, self.device_id)

    def make_key(self, device_id: str, key_type: str, replace: bool) -> bytes:
        if self.active and device_id != self.device_id:
            if not replace:
                raise BoardRefused(FailureCode.ALREADY_PROVISIONED, "I am somebody.")
            self.key, self.active = None, None
        if self.key is None:
            self.key = ec.generate_private_key(ec.SECP256R1())
            self.keys_made += 1
        self.device_id = device_id
        return build_csr(self.key, [("2.5.4.3", device_id), ("2.5.4.5", self.csr_serial or self.serial)], [])

    def install(self, identity: Identity) -> bytes:
        if self.key is None or identity.chain[0].public_key() != self.key.public_key():
            raise BoardRefused(FailureCode.KEY_MISMATCH, "Not my key.\r\n")
        self.stored = identity
        return hashlib.sha256(identity.chain[0].public_bytes(Encoding.DER)).digest()

    def sign(self, octets: bytes) -> bytes:
        key = self.signing_key or self.key
        assert key
        return possession.sign(key, octets)

    def activate(self) -> None:
        self.active = self.stored


Fault = Callable[[int, bytes], list[bytes]]
"""(position of the frame on the line, the frame) -> what arrives instead."""


def unharmed(_: int, frame: bytes) -> list[bytes]:
    return [frame]


def frames_of(stream: bytes) -> list[bytes]:
    return re.findall(rb"\x00[^\x00]+\x00", stream)


@dataclass
class Factory:
    """A line between a station and a board, in virtual time."""

    board: MemoryBoard = field(default_factory=MemoryBoard)
    order: Order = ORDER
    fault: Fault = unharmed
    restarts_at: frozenset[int] = frozenset()
    """Positions before which the board loses its memory."""
    stop_at: int | None = None
    """The position before which the station loses its power."""
    enrolled: list[Csr] = field(default_factory=list)
    positions: Iterator[int] = field(default_factory=itertools.count)
    chance: random.Random = field(default_factory=lambda: random.Random(1))
    now: float = 0.0

    def run(self) -> list[Event]:
        self.device = DeviceDialogue(self.board)
        self.station = StationDialogue(self.order, self.chance.randbytes)
        self.station.begin(self.now)
        events: list[Event] = []
        while not self.station.ended:
            sent = self.station.data_to_send()
            if not sent and (timeout := self.station.next_timeout()) is not None:
                self.now = timeout
                self.station.tick(self.now)
            for frame in frames_of(sent):
                if (arrived := self._carry(frame)) is None:
                    return events
                for answer in frames_of(b"".join(self.device.feed(piece) for piece in arrived)):
                    if (up := self._carry(answer)) is None:
                        return events
                    for event in self.station.feed(b"".join(up), self.now):
                        events.append(event)
                        if isinstance(event, CsrReceived):
                            self.station.deliver(self.enroll(event.csr), self.now)
                    if self.station.ended:
                        return events
        return events

    def _carry(self, frame: bytes) -> list[bytes] | None:
        position = next(self.positions)
        if position in self.restarts_at:
            self.device = DeviceDialogue(self.board)
        if position == self.stop_at:
            return None
        return self.fault(position, frame)

    def enroll(self, csr: Csr) -> Delivery:
        self.enrolled.append(csr)
        key = x509.load_der_x509_csr(csr.der).public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        leaf = certificate(self.order.device_id, key)
        return Delivery((leaf, CA), (CA,), "https://est.example:8443", "mqtt.example", 8883)


def clean_run_length() -> int:
    factory = Factory()
    factory.run()
    return next(factory.positions)


LENGTH = clean_run_length()


def assert_provisioned(factory: Factory, events: list[Event]) -> None:
    assert isinstance(events[-1], Provisioned)
    assert any(isinstance(event, Proved) for event in events)
    active = factory.board.active
    assert active
    assert active.chain[0].fingerprint(hashes.SHA256()) == events[-1].fingerprint
    assert (active.est_url, active.mqtt_host, active.mqtt_port) == ("https://est.example:8443", "mqtt.example", 8883)
    assert active.anchors == (CA,)
    assert factory.board.keys_made == 1


def test_a_clean_run() -> None:
    factory = Factory()
    events = factory.run()
    assert_provisioned(factory, events)
    assert [type(event).__name__ for event in events] == [
        "Greeted",
        "CsrReceived",
        "Written",
        "Written",
        "Stored",
        "Proved",
        "Provisioned",
    ]
    assert factory.now == 0.0  # nothing was waited for


@pytest.mark.parametrize("position", range(LENGTH))
def test_any_one_frame_is_lost(position: int) -> None:
    factory = Factory(fault=lambda at, frame: [] if at == position else [frame])
    assert_provisioned(factory, factory.run())
    assert len(factory.enrolled) == 1


@pytest.mark.parametrize("position", range(LENGTH))
def test_any_one_frame_comes_twice(position: int) -> None:
    factory = Factory(fault=lambda at, frame: [frame, frame] if at == position else [frame])
    assert_provisioned(factory, factory.run())
    assert len(factory.enrolled) == 1


@pytest.mark.parametrize("position", range(LENGTH))
def test_any_one_frame_is_damaged(position: int) -> None:
    middle = bytes((0x55,))
    factory = Factory(
        fault=lambda at, frame: [frame[:5] + middle + frame[6:]] if at == position and frame[5] != 0x55 else [frame]
    )
    assert_provisioned(factory, factory.run())


@pytest.mark.parametrize("distance", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("position", range(LENGTH))
def test_any_one_frame_comes_again_later(position: int, distance: int) -> None:
    """Also in front of the frames of another step, on the way down and up."""
    kept: list[bytes] = []

    def late_copy(at: int, frame: bytes) -> list[bytes]:
        if at == position:
            kept.append(frame)
        return [kept.pop(), frame] if kept and at == position + distance else [frame]

    factory = Factory(fault=late_copy)
    assert_provisioned(factory, factory.run())
    assert len(factory.enrolled) == 1


@pytest.mark.parametrize("position", range(0, LENGTH, 2))
def test_any_two_frames_change_places(position: int) -> None:
    kept: list[bytes] = []

    def swap(at: int, frame: bytes) -> list[bytes]:
        if at == position:
            kept.append(frame)
            return []
        return [frame, kept.pop()] if kept else [frame]

    factory = Factory(fault=swap)
    assert_provisioned(factory, factory.run())


@pytest.mark.parametrize("seed", range(20))
def test_a_bad_line(seed: int) -> None:
    """A third of all frames lost, doubled, damaged or wrapped in noise."""
    chance = random.Random(seed)

    def bad(_: int, frame: bytes) -> list[bytes]:
        noise = chance.randbytes(chance.randrange(80))
        return chance.choice([[frame]] * 8 + [[], [frame, frame], [noise, frame, noise], [frame[:-4], b"log\r\n"]])

    factory = Factory(fault=bad)
    assert_provisioned(factory, factory.run())


@pytest.mark.parametrize("position", range(LENGTH + 2))
def test_the_board_restarts_anywhere(position: int) -> None:
    factory = Factory(restarts_at=frozenset({position}))
    events = factory.run()
    assert_provisioned(factory, events)
    assert len({csr.key_sha256 for csr in factory.enrolled}) == 1
    assert sum(isinstance(event, Restarted) for event in events) <= 1


@pytest.mark.parametrize("position", range(1, LENGTH))
def test_the_station_loses_power_anywhere_and_runs_again(position: int) -> None:
    first = Factory(stop_at=position)
    first.run()
    again = Factory(board=first.board, chance=random.Random(2))
    events = again.run()
    assert_provisioned(again, events)
    assert {csr.key_sha256 for csr in first.enrolled} <= {csr.key_sha256 for csr in again.enrolled}


def test_a_board_that_restarts_over_and_over_is_given_up() -> None:
    factory = Factory(restarts_at=frozenset(range(6, 600, 7)))
    with pytest.raises(NoAnswer, match="over and over"):
        factory.run()
    assert len(factory.enrolled) <= SESSIONS_MAX


def test_a_silent_board_is_given_up_and_told_so() -> None:
    factory = Factory(fault=lambda at, frame: [])
    with pytest.raises(NoAnswer, match="did not answer Hello"):
        factory.run()
    assert factory.now == 30.0
    assert next(factory.positions) == 15  # once each two seconds
    last = decode(FrameReader().feed(factory.station.data_to_send())[0]).body
    assert isinstance(last, m.Abort)


def test_a_silence_later_ends_the_run_too() -> None:
    factory = Factory(fault=lambda at, frame: [frame] if at < 8 else [])
    with pytest.raises(NoAnswer):
        factory.run()
    assert factory.board.active is None


def test_running_again_changes_nothing() -> None:
    board = MemoryBoard()
    for seed in (1, 2, 3):
        factory = Factory(board=board, chance=random.Random(seed))
        assert_provisioned(factory, factory.run())


def test_a_board_with_another_identity_is_left_alone() -> None:
    board = MemoryBoard()
    Factory(board=board).run()
    other = replace(ORDER, device_id="pump-8")
    with pytest.raises(BadBoard, match="provisioned already, as 'pump-7'"):
        Factory(board=board, order=other).run()
    assert board.device_id == "pump-7"
    events = Factory(board=board, order=replace(other, replace=True)).run()
    assert isinstance(events[-1], Provisioned)
    assert board.keys_made == 2


@pytest.mark.parametrize("chunk_size", [m.CHUNK_SIZE_MIN, 100, m.CHUNK_SIZE_MAX])
def test_boards_of_any_size(chunk_size: int) -> None:
    factory = Factory(MemoryBoard(chunk_size_max=chunk_size))
    assert_provisioned(factory, factory.run())


def test_octet_by_octet() -> None:
    device, station = DeviceDialogue(MemoryBoard()), StationDialogue(ORDER, random.Random(1).randbytes)
    factory = Factory()
    station.begin(0.0)
    while not station.ended:
        answers = b"".join(device.feed(bytes((octet,))) for octet in station.data_to_send())
        for octet in answers:
            for event in station.feed(bytes((octet,)), 0.0):
                if isinstance(event, CsrReceived):
                    station.deliver(factory.enroll(event.csr), 0.0)
    assert device.state is State.FINISHED


def test_a_line_that_echoes() -> None:
    device, station = DeviceDialogue(MemoryBoard()), StationDialogue(ORDER, random.Random(1).randbytes)
    station.begin(0.0)
    while not station.ended:
        sent = station.data_to_send()
        answer = device.feed(sent)
        assert device.feed(answer) == b""
        for event in station.feed(sent + answer, 0.0):
            if isinstance(event, CsrReceived):
                station.deliver(Factory().enroll(event.csr), 0.0)
    assert device.state is State.FINISHED


# Liars.


def fails(factory: Factory, code: FailureCode, kind: type[DialogueError] = BadBoard) -> DialogueError:
    with pytest.raises(kind) as caught:
        factory.run()
    assert caught.value.code == code
    assert factory.station.ended
    assert factory.station.next_timeout() is None
    last = decode(FrameReader().feed(factory.station.data_to_send())[-1]).body
    assert isinstance(last, m.Abort)
    assert last.code == code
    assert factory.board.active is None
    return caught.value


def test_a_proof_by_another_key() -> None:
    board = MemoryBoard(signing_key=ec.generate_private_key(ec.SECP256R1()))
    error = fails(Factory(board), FailureCode.BAD_PROOF)
    assert error.code_name == "bad-proof"


def test_a_proof_of_another_session_or_challenge() -> None:
    class Replaying(MemoryBoard):
        def sign(self, octets: bytes) -> bytes:
            assert octets.startswith(b"fleet-serial-possession-v1\x00")
            return super().sign(bytes(octets[:-1]) + bytes((octets[-1] ^ 1,)))

    fails(Factory(Replaying()), FailureCode.BAD_PROOF)


def test_a_proof_that_is_no_signature() -> None:
    class Rambling(MemoryBoard):
        def sign(self, octets: bytes) -> bytes:
            return b"trust me"

    fails(Factory(Rambling()), FailureCode.BAD_PROOF)


def test_a_csr_of_somebody_else() -> None:
    """The CSR is genuine, copied from another board: the name and the proof give it away."""
    stolen_key = ec.generate_private_key(ec.SECP256R1())

    class Copying(MemoryBoard):
        def make_key(self, device_id: str, key_type: str, replace: bool) -> bytes:
            super().make_key(device_id, key_type, replace)
            return build_csr(stolen_key, [("2.5.4.3", name)], [])

        def install(self, identity: Identity) -> bytes:
            self.stored = identity
            return hashlib.sha256(identity.chain[0].public_bytes(Encoding.DER)).digest()

    name = "pump-8"
    fails(Factory(Copying()), FailureCode.WRONG_DEVICE)
    name = "pump-7"
    fails(Factory(Copying()), FailureCode.BAD_PROOF)


def test_a_csr_whose_signature_is_broken() -> None:
    class Sloppy(MemoryBoard):
        def make_key(self, device_id: str, key_type: str, replace: bool) -> bytes:
            csr = bytearray(super().make_key(device_id, key_type, replace))
            csr[-1] ^= 1
            return bytes(csr)

    fails(Factory(Sloppy()), FailureCode.MALFORMED)


def test_a_csr_with_another_serial_than_said() -> None:
    fails(Factory(MemoryBoard(csr_serial="SN-0666")), FailureCode.WRONG_DEVICE)


def test_a_csr_with_another_kind_of_key() -> None:
    class Stronger(MemoryBoard):
        def make_key(self, device_id: str, key_type: str, replace: bool) -> bytes:
            return build_csr(ec.generate_private_key(ec.SECP384R1()), [("2.5.4.3", device_id)], [])

    fails(Factory(Stronger()), FailureCode.UNSUPPORTED)


def test_a_board_with_another_serial_than_its_label() -> None:
    error = fails(Factory(order=replace(ORDER, hardware_serial="SN-0002")), FailureCode.WRONG_DEVICE)
    assert "'SN-0001', not 'SN-0002'" in error.message
    fails(Factory(order=replace(ORDER, model="valve")), FailureCode.WRONG_DEVICE)
    fails(Factory(order=replace(ORDER, key_type="Ed25519")), FailureCode.UNSUPPORTED)


def test_a_board_taken_out_and_another_put_in() -> None:
    factory = Factory(restarts_at=frozenset({8}))

    class Swapped(MemoryBoard):
        def facts(self) -> m.Facts:
            return replace(super().facts(), hardware_serial="SN-0002" if self.key else "SN-0001")

    factory.board = Swapped()
    error = fails(factory, FailureCode.WRONG_DEVICE)
    assert "Another board" in error.message


def test_a_board_that_says_it_stored_another_certificate() -> None:
    class Confused(MemoryBoard):
        def install(self, identity: Identity) -> bytes:
            return bytes(32)

    fails(Factory(Confused()), FailureCode.BAD_CERTIFICATE)


def test_a_certificate_for_another_board_never_goes_down() -> None:
    class Mixed(Factory):
        def enroll(self, csr: Csr) -> Delivery:
            delivery = super().enroll(csr)
            return replace(delivery, chain=(wrong, CA))

    wrong = certificate("pump-7", CA_KEY.public_key())
    fails(Mixed(), FailureCode.KEY_MISMATCH, WrongIdentity)

    class Renamed(Factory):
        def enroll(self, csr: Csr) -> Delivery:
            key = x509.load_der_x509_csr(csr.der).public_key()
            assert isinstance(key, ec.EllipticCurvePublicKey)
            return replace(super().enroll(csr), chain=(certificate("pump-8", key), CA))

    fails(Renamed(), FailureCode.WRONG_DEVICE, WrongIdentity)

    class Long(Factory):
        def enroll(self, csr: Csr) -> Delivery:
            delivery = super().enroll(csr)
            return replace(delivery, anchors=(CA,) * (m.CERTIFICATES_MAX + 1))

    fails(Long(), FailureCode.TOO_LARGE, WrongIdentity)


def test_a_board_that_gets_the_wrong_certificate_says_so() -> None:
    class Forgetful(MemoryBoard):
        def install(self, identity: Identity) -> bytes:
            self.key = None
            return super().install(identity)

    factory = Factory(Forgetful())
    error = fails(factory, FailureCode.KEY_MISMATCH, BoardRefused)
    assert error.message == "The board refused Install: Not my key."


# The tables, and what is said out of turn.


def say(device: DeviceDialogue, body: m.Body, step: int, session: bytes = b"sessiona") -> m.Body | None:
    answers = FrameReader().feed(device.feed(encode_frame(encode(Message(session, step, body)))))
    return decode(answers[0]).body if answers else None


GREETING = m.Hello((1,), "line-1")
SAMPLES: tuple[m.Request, ...] = (
    GREETING,
    m.MakeKey("pump-7", "EC-P256", False),
    m.ReadCsr(0),
    m.WriteBegin(1, 10, bytes(32)),
    m.WriteChunk(1, 0, b"x"),
    m.Install("https://e", "h", 1),
    m.Prove(bytes(32)),
    m.Finish(),
)


def test_the_tables_name_every_message() -> None:
    assert set(EXPECTS) == set(State)
    taken = {request for requests in EXPECTS.values() for request in requests}
    assert taken | {m.Hello, m.Abort} == set(m.REQUESTS)
    assert set(ANSWERS) | {m.Abort} == set(m.REQUESTS)
    assert set(ANSWERS.values()) | {m.Failed} == set(m.ANSWERS)


@pytest.mark.parametrize("request_", SAMPLES[1:])
def test_nothing_is_taken_before_hello(request_: m.Request) -> None:
    answer = say(DeviceDialogue(MemoryBoard()), request_, 0)
    assert isinstance(answer, m.Failed)
    assert answer.code == FailureCode.NO_SESSION


@pytest.mark.parametrize(
    ("state", "request_"),
    [(state, request) for state in State for request in SAMPLES if not isinstance(request, EXPECTS[state])],
)
def test_each_state_takes_nothing_but_what_its_table_says(state: State, request_: m.Request) -> None:
    device = DeviceDialogue(MemoryBoard())
    say(device, m.Hello((1,), "first"), 0)
    device.state = state
    if state is State.IDLE and isinstance(request_, m.Hello):
        return
    answer = say(device, request_, 1)
    assert isinstance(answer, m.Failed)
    assert answer.code == FailureCode.OUT_OF_ORDER
    assert str(device.state) == "failed"
    assert say(device, request_, 1) == answer  # the same answer to the same request


def test_steps_out_of_order() -> None:
    device = DeviceDialogue(MemoryBoard())
    facts = say(device, GREETING, 0)
    assert isinstance(facts, m.Facts)
    assert facts.version == 1
    assert say(device, GREETING, 0) == facts
    other = say(device, m.Hello((1,), "line-2"), 0)
    assert isinstance(other, m.Failed)
    assert other.code == FailureCode.OUT_OF_ORDER
    assert isinstance(say(device, SAMPLES[1], 1), m.CsrReady)
    assert say(device, GREETING, 0) is None  # long answered
    ahead = say(device, m.ReadCsr(0), 3)
    assert isinstance(ahead, m.Failed)
    assert ahead.code == FailureCode.OUT_OF_ORDER


def test_a_new_session_begins_with_step_zero() -> None:
    answer = say(DeviceDialogue(MemoryBoard()), GREETING, 1)
    assert isinstance(answer, m.Failed)


def test_no_common_version() -> None:
    answer = say(DeviceDialogue(MemoryBoard()), m.Hello((2, 3), ""), 0)
    assert isinstance(answer, m.Failed)
    assert answer.code == FailureCode.UNSUPPORTED


def test_abort_ends_the_session_of_its_own_station_only() -> None:
    device = DeviceDialogue(MemoryBoard())
    say(device, GREETING, 0)
    assert say(device, m.Abort(13, "stop"), 7, b"sessionb") is None
    assert device.state is State.GREETED
    assert say(device, m.Abort(13, "stop"), 7) is None
    assert str(device.state) == "idle"
    assert isinstance(say(device, SAMPLES[1], 1), m.Failed)


@pytest.mark.parametrize(
    ("writes", "code"),
    [
        ([m.WriteChunk(1, 0, b"x")], FailureCode.OUT_OF_ORDER),
        ([m.WriteBegin(1, 4, bytes(32)), m.WriteChunk(1, 1, b"x")], FailureCode.OUT_OF_ORDER),
        ([m.WriteBegin(1, 4, bytes(32)), m.WriteChunk(1, 0, b"12345")], FailureCode.TOO_LARGE),
        ([m.WriteBegin(1, 900, bytes(32)), m.WriteChunk(1, 0, bytes(257))], FailureCode.TOO_LARGE),
        ([m.WriteBegin(1, 4, bytes(32)), m.WriteChunk(1, 0, b"1234")], FailureCode.MALFORMED),  # digest
        ([m.WriteBegin(1, 4, bytes(32)), m.Install("u", "h", 1)], FailureCode.OUT_OF_ORDER),
        (
            [m.WriteBegin(1, 1, hashlib.sha256(b"0").digest()), m.WriteChunk(1, 0, b"0"), m.Install("u", "h", 1)],
            FailureCode.MALFORMED,  # no certificate
        ),
        ([m.ReadCsr(4000)], FailureCode.MALFORMED),
    ],
)
def test_bad_writes(writes: list[m.Request], code: FailureCode) -> None:
    device = DeviceDialogue(MemoryBoard())
    answer = None
    for step, request in enumerate([*SAMPLES[:2], *writes]):
        answer = say(device, request, step)
    assert isinstance(answer, m.Failed)
    assert answer.code == code


def test_a_message_that_cannot_be_read_is_answered_when_it_has_a_header() -> None:
    device = DeviceDialogue(MemoryBoard())
    later_version = bytes.fromhex("85020148") + b"sessiona" + bytes.fromhex("00a0")
    answers = FrameReader().feed(device.feed(encode_frame(later_version)))
    assert decode(answers[0]).body == m.Failed(
        FailureCode.UNSUPPORTED, "Version 2 of the protocol is not spoken here, only 1."
    )
    assert device.feed(encode_frame(b"no cbor")) == b""
    assert device.feed(encode_frame(b"\x85\x02\x18\x41\x48sessiona\x00\xa0")) == b""  # an answer of a later version
    assert device.feed(encode_frame(encode(Message(b"sessiona", 0, m.Finished("x", bytes(32)))))) == b""


def hears(station: StationDialogue, body: m.Body, step: int, session: bytes | None = None) -> list[Event]:
    return station.feed(encode_frame(encode(Message(session or station.session, step, body))), 0.0)


def test_a_station_hears_only_the_answer_it_waits_for() -> None:
    station = StationDialogue(ORDER, random.Random(1).randbytes)
    station.begin(0.0)
    facts = MemoryBoard().facts()
    assert hears(station, facts, 0, b"another1") == []
    assert hears(station, facts, 1) == []
    assert station.feed(encode_frame(b"junk"), 0.0) == []
    with pytest.raises(BadBoard) as caught:  # it chose version 9
        hears(station, facts, 0)
    assert caught.value.code == FailureCode.UNSUPPORTED


@pytest.mark.parametrize(
    "answer", [m.CsrReady(1, bytes(32)), m.Installed(bytes(32)), m.Finished("pump-7", bytes(32)), m.Proof(b"x")]
)
def test_an_answer_to_another_question_ends_the_run(answer: m.Answer) -> None:
    station = StationDialogue(ORDER, random.Random(1).randbytes)
    station.begin(0.0)
    with pytest.raises(BadBoard) as caught:
        hears(station, answer, 0)
    assert caught.value.code == FailureCode.OUT_OF_ORDER
    assert hears(station, answer, 0) == []  # it has ended


def test_an_answer_that_cannot_be_read_ends_the_run() -> None:
    station = StationDialogue(ORDER, random.Random(1).randbytes)
    station.begin(0.0)
    with pytest.raises(BadBoard, match="can't be read"):
        station.feed(encode_frame(b"\x85\x01\x18\x41\x48" + station.session + b"\x00\xa0"), 0.0)


def test_abort_by_the_station() -> None:
    station = StationDialogue(ORDER, random.Random(1).randbytes)
    station.begin(0.0)
    station.data_to_send()
    station.abort("interrupted")
    station.abort("twice")
    [payload] = FrameReader().feed(station.data_to_send())
    assert decode(payload).body == m.Abort(FailureCode.STOPPED, "interrupted")
    assert station.ended
    station.tick(1000.0)
    assert station.data_to_send() == b""


def test_deliver_answers_a_csr() -> None:
    station = StationDialogue(ORDER, random.Random(1).randbytes)
    delivery = Delivery((CA,), (CA,), "u", "h", 1)
    with pytest.raises(ValueError, match="CsrReceived"):
        station.deliver(delivery, 0.0)


def test_unknown_codes_have_a_name_too() -> None:
    assert DialogueError(99, "x").code_name == "code-99"
