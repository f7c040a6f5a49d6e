"""The inside of a backup: tar reads it, and we read nothing that its manifest does not name."""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from msgspec.structs import replace

from fleet.backup.archive import Manifest, Member, is_name, manifest_bytes, parse_manifest, read_archive, write_archive
from fleet.domain.errors import Invalid

FILES = {"registry.db": b"r" * 2000, "fleet.toml": b"[fleet]\n", "ca/root.key": b"", "ca/root.pem": b"p" * 512}


def member(name: str, data: bytes) -> Member:
    return Member(name, len(data), hashlib.sha256(data).hexdigest())


MANIFEST = Manifest(
    datetime(2026, 3, 1, 12, tzinfo=UTC),
    "ab" * 32,
    "cd" * 16,
    7,
    9,
    "ef" * 32,
    tuple(map(member, FILES, FILES.values())),
)


def written(manifest: Manifest = MANIFEST) -> bytes:
    out = io.BytesIO()
    write_archive(out, manifest, ((data,) for data in FILES.values()))
    return out.getvalue()


def read(stream: bytes) -> dict[str, bytes]:
    found: dict[str, io.BytesIO] = {}

    @contextmanager
    def place(each: Member) -> Iterator[io.BytesIO]:
        yield found.setdefault(each.name, io.BytesIO())

    assert read_archive(io.BytesIO(stream), place) == MANIFEST
    return {name: data.getvalue() for name, data in found.items()}


def test_it_comes_back_and_tar_reads_it_too() -> None:
    assert read(written()) == FILES
    with tarfile.open(fileobj=io.BytesIO(written())) as tar:
        assert tar.getnames() == ["manifest.json", *FILES]
        assert {m.mode for m in tar.getmembers()} == {0o600}
        extracted = tar.extractfile("registry.db")
        assert extracted is not None
        assert extracted.read() == FILES["registry.db"]


def test_cut_at_any_byte_it_is_refused() -> None:
    stream = written()
    for end in range(0, len(stream), 37):
        with pytest.raises(Invalid):
            read(stream[:end])
    with pytest.raises(Invalid, match="cut off"):
        read(stream[:-1])
    for more in (b"x", bytes(512)):
        with pytest.raises(Invalid, match="data follows its end"):
            read(stream + more)


def test_any_other_byte_is_found() -> None:
    stream = written()
    for at in range(0, len(stream), 13):
        bad = bytearray(stream)
        bad[at] ^= 0x41
        with pytest.raises((Invalid, AssertionError)):  # a manifest that says something else is another manifest
            read(bytes(bad))


def crafted(*members: tuple[str, bytes, bytes], manifest: Manifest = MANIFEST) -> bytes:
    """(name, type, data) of each, behind the manifest."""
    out = io.BytesIO()
    for name, kind, data in (("manifest.json", tarfile.REGTYPE, manifest_bytes(manifest)), *members):
        info = tarfile.TarInfo(name)
        info.type, info.size, info.linkname = kind, len(data), "/etc/passwd"
        out.write(info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512))
    return out.getvalue() + bytes(1024)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.XHDTYPE])
def test_nothing_but_regular_files(kind: bytes) -> None:
    with pytest.raises(Invalid, match="no regular file"):
        read(crafted(("registry.db", kind, b"")))


def test_nothing_that_the_manifest_does_not_name() -> None:
    whole = [(name, tarfile.REGTYPE, data) for name, data in FILES.items()]
    assert read(crafted(*whole)) == FILES
    for wrong in (
        whole[1:],
        [*whole, ("more", tarfile.REGTYPE, b"")],
        [whole[1], whole[0], *whole[2:]],
        [("registry.db", tarfile.REGTYPE, b"q" * 2000), *whole[1:]],
        [("../registry.db", tarfile.REGTYPE, FILES["registry.db"]), *whole[1:]],
    ):
        with pytest.raises(Invalid):
            read(crafted(*wrong))


NAMES = ["../x", "/etc/x", "a/../b", "a//b", "./a", ".hidden", "a/.b", "", "a/", "a b", "a\\b", "a\0b", "x" * 100]


@pytest.mark.parametrize("name", [*NAMES, "manifest.json", "a/b/c/d/e/f", "-rf"])
def test_names_that_lead_elsewhere(name: str) -> None:
    assert not is_name(name)
    with pytest.raises(Invalid):
        parse_manifest(manifest_bytes(replace(MANIFEST, members=(Member(name, 1, "ab" * 32),))))


WRONG: list[Callable[[dict[str, Any]], object]] = [
    lambda d: d.pop("audit"),
    lambda d: d.update(members={}),
    lambda d: d.update(event_seq=-1),
    lambda d: d.update(event_seq=True),
    lambda d: d.update(taken_at="yesterday"),
    lambda d: d.update(fleet="../x"),
    lambda d: d.update(lineage="x"),
    lambda d: d["members"].append(d["members"][0]),
    lambda d: d["members"][0].update(size=1 << 50),
    lambda d: d["members"][0].update(sha256="x"),
    lambda d: d.update(members=[{"name": f"f{n}", "size": 0, "sha256": "ab" * 32} for n in range(4097)]),
]


@pytest.mark.parametrize("spoil", WRONG)
def test_a_manifest_that_makes_no_sense(spoil: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(manifest_bytes(MANIFEST))
    assert parse_manifest(json.dumps(document).encode()) == MANIFEST
    spoil(document)
    with pytest.raises(Invalid):
        parse_manifest(json.dumps(document).encode())


def test_a_newer_format_is_named() -> None:
    with pytest.raises(Invalid) as caught:
        parse_manifest(b'{"format": 2}')
    assert caught.value.code == "backup-newer"
    for text in (b"", b"[]", b"\xff", b"[" * 100_000, b'{"format": 1}'):
        with pytest.raises(Invalid):
            parse_manifest(text)


def test_a_file_that_changes_under_our_hands() -> None:
    out = io.BytesIO()
    with pytest.raises(Invalid, match="changed while it was read"):
        write_archive(out, MANIFEST, ((b"other",) for _ in FILES))
