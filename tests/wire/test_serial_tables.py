"""The tables of both sides, and what is said out of turn."""

import hashlib
import random

import pytest

from fleet.wire.serial import messages as m
from fleet.wire.serial.dialogue.device import EXPECTS, DeviceDialogue, State
from fleet.wire.serial.dialogue.errors import BadBoard, DialogueError
from fleet.wire.serial.dialogue.events import Event, ProvisioningData
from fleet.wire.serial.dialogue.station import ANSWERS, StationDialogue
from fleet.wire.serial.frames import FrameReader, encode_frame
from fleet.wire.serial.messages import FailureCode, Message, decode, encode
from tests.wire.serial_line import CA, ORDER, MemoryBoard


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
    info = say(device, GREETING, 0)
    assert isinstance(info, m.DeviceInfo)
    assert info.version == 1
    assert say(device, GREETING, 0) == info
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


@pytest.mark.parametrize("state", State)
def test_hello_of_a_new_session_starts_it_in_any_state(state: State) -> None:
    device = DeviceDialogue(MemoryBoard())
    say(device, GREETING, 0)
    say(device, SAMPLES[1], 1)
    say(device, m.WriteBegin(1, 4, bytes(32)), 2)
    device.state = state
    assert isinstance(say(device, GREETING, 0, b"sessionb"), m.DeviceInfo)
    assert device.state is State.GREETED
    old = say(device, m.WriteChunk(1, 0, b"x"), 3)
    assert isinstance(old, m.Failed)
    assert old.code == FailureCode.NO_SESSION
    say(device, SAMPLES[1], 1, b"sessionb")
    forgotten = say(device, m.WriteChunk(1, 0, b"x"), 2, b"sessionb")
    assert isinstance(forgotten, m.Failed)
    assert forgotten.code == FailureCode.OUT_OF_ORDER


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
        FailureCode.UNSUPPORTED, "Version 2 of the protocol is not supported, only 1."
    )
    assert device.feed(encode_frame(b"no cbor")) == b""
    assert device.feed(encode_frame(b"\x85\x02\x18\x41\x48sessiona\x00\xa0")) == b""  # an answer of a later version
    assert device.feed(encode_frame(encode(Message(b"sessiona", 0, m.Finished("x", bytes(32)))))) == b""


def hears(station: StationDialogue, body: m.Body, step: int, session: bytes | None = None) -> list[Event]:
    return station.feed(encode_frame(encode(Message(session or station.session, step, body))), 0.0)


def test_a_station_hears_only_the_answer_it_waits_for() -> None:
    station = StationDialogue(ORDER, random.Random(1).randbytes)
    station.begin(0.0)
    info = MemoryBoard().device_info()
    assert hears(station, info, 0, b"another1") == []
    assert hears(station, info, 1) == []
    assert station.feed(encode_frame(b"junk"), 0.0) == []
    with pytest.raises(BadBoard) as caught:  # it chose version 9
        hears(station, info, 0)
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
    with pytest.raises(BadBoard, match="cannot be decoded"):
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
    delivery = ProvisioningData((CA,), (CA,), "u", "h", 1)
    with pytest.raises(ValueError, match="CsrReceived"):
        station.deliver(delivery, 0.0)


def test_unknown_codes_have_a_name_too() -> None:
    assert DialogueError(99, "x").code_name == "code-99"
