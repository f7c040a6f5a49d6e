"""Station joined to board with no I/O: every frame lost, doubled, late or damaged; restarts anywhere."""

import random
from dataclasses import replace

import pytest

from fleet.wire.serial import messages as m
from fleet.wire.serial.dialogue.device import DeviceDialogue, State
from fleet.wire.serial.dialogue.errors import BadBoard, NoAnswer
from fleet.wire.serial.dialogue.events import CsrReceived, Provisioned, Restarted
from fleet.wire.serial.dialogue.station import SESSIONS_MAX, StationDialogue
from fleet.wire.serial.frames import FrameReader
from fleet.wire.serial.messages import decode
from tests.wire.serial_line import LENGTH, ORDER, Factory, MemoryBoard, assert_provisioned


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
    damaged: list[bytes] = []

    def flip(at: int, frame: bytes) -> list[bytes]:
        if at != position:
            return [frame]
        damaged.append(frame[:5] + bytes((frame[5] ^ 0x55,)) + frame[6:])
        return damaged

    factory = Factory(fault=flip)
    assert_provisioned(factory, factory.run())
    assert len(damaged) == 1


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
    with pytest.raises(NoAnswer, match="keeps restarting"):
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
    with pytest.raises(BadBoard, match="already provisioned as 'pump-7'"):
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
