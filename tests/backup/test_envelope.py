"""A sealed stream: it comes back whole, and no cut, flip, swap or wrong passphrase goes unseen."""

import io

import pytest

from fleet.backup.envelope import CHUNK, HEADER, TAG, Opening, Sealing, is_sealed
from fleet.domain.errors import FleetError, Invalid, Refused

COST = 4


def sealed(data: bytes, *, pieces: int = 1000) -> bytes:
    out = io.BytesIO()
    sealing = Sealing(out, b"correct horse", cost=COST)
    for start in range(0, len(data), pieces):
        sealing.write(data[start : start + pieces])
    sealing.finish()
    return out.getvalue()


def opened(stream: bytes, passphrase: bytes = b"correct horse", *, at_once: int = 1 << 20) -> bytes:
    opening = Opening(io.BytesIO(stream), passphrase)
    parts = []
    while part := opening.read(at_once):
        parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
@pytest.mark.parametrize("at_once", [999, 1 << 20])
def test_it_comes_back(size: int, at_once: int) -> None:
    data = bytes(n * 7 % 251 for n in range(size))
    stream = sealed(data)
    assert is_sealed(stream[:HEADER])
    assert opened(stream, at_once=at_once) == data


def test_no_file_is_sealed_like_another() -> None:
    assert sealed(b"x")[HEADER:] != sealed(b"x")[HEADER:]


def test_a_wrong_passphrase() -> None:
    with pytest.raises(Refused) as caught:
        opened(sealed(b"x"), b"wrong horse")
    assert caught.value.code == "wrong-passphrase"


def test_cut_anywhere_it_is_not_whole() -> None:
    stream = sealed(bytes(2 * CHUNK + 100))
    step = 1777
    edges = [HEADER + n * (CHUNK + TAG) + d for n in range(3) for d in (-1, 0, 1)]
    for end in [*range(0, len(stream), step), *edges, len(stream) - 1]:
        with pytest.raises(FleetError):
            opened(stream[:end])


def test_a_flipped_bit_anywhere() -> None:
    stream = sealed(b"all of it" * 20)
    for at in range(len(stream)):
        if at in (8, 9, 10):
            continue  # scrypt's parameters, below
        bad = bytearray(stream)
        bad[at] ^= 1
        with pytest.raises(FleetError):
            opened(bytes(bad))


def test_chunks_keep_their_places() -> None:
    stream = sealed(b"a" * CHUNK + b"b" * CHUNK + b"c")
    first, second = (stream[HEADER + n * (CHUNK + TAG) :][: CHUNK + TAG] for n in (0, 1))
    rest = stream[HEADER + 2 * (CHUNK + TAG) :]
    for bad in (
        second + first + rest,
        first + first + rest,
        first + rest,
        first + second,
        first + second + rest + b"x",
    ):
        with pytest.raises(FleetError):
            opened(stream[:HEADER] + bad)


@pytest.mark.parametrize("parameters", [(0, 8, 1), (19, 8, 1), (255, 8, 1), (4, 255, 1), (4, 8, 255)])
def test_a_header_cannot_ask_for_all_our_memory(parameters: tuple[int, int, int]) -> None:
    stream = sealed(b"x")
    with pytest.raises(Invalid) as caught:
        opened(stream[:8] + bytes(parameters) + stream[11:])
    assert caught.value.code == "not-a-backup"


@pytest.mark.parametrize("stream", [b"", b"PK", bytes(100), b"FLTBAK1\n"])
def test_something_else(stream: bytes) -> None:
    with pytest.raises(Invalid) as caught:
        opened(stream)
    assert caught.value.code == "not-a-backup"
