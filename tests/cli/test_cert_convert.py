"""`fleet cert convert`: every form, nothing lost in silence, nothing half written."""

import os
import pty
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from fleet.cli.cert import cert
from fleet.config.durable_files import write_file
from fleet.wire.encodings.bundle import FORM_BY_SUFFIX, Bundle, Form
from fleet.wire.encodings.reading import read
from fleet.wire.encodings.recognize import Content, recognize
from fleet.wire.encodings.writing import write
from tests.waiting import PATIENCE_SECONDS
from tests.wire.encodings.material import BUNDLE, CHAIN, CHAIN_PEM, KEY, KEY_PEM, LEAF, PASSWORD, key_bytes


def convert(*arguments: str | Path, data: bytes | None = None) -> Result:
    return CliRunner().invoke(cert, ["convert", *map(str, arguments)], input=data)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def pem(tmp_path: Path) -> Path:
    """Key and chain."""
    path = tmp_path / "pump.pem"
    path.write_bytes(KEY_PEM + CHAIN_PEM)
    return path


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    path = tmp_path / "chain.pem"
    path.write_bytes(CHAIN_PEM)
    return path


@pytest.fixture
def password_file(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    path.write_bytes(PASSWORD + b"\n")
    return path


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        (".pem", Content.PEM),
        (".cer", Content.CERTIFICATE),
        (".crt", Content.CERTIFICATE),
        (".der", Content.CERTIFICATE),
        (".p7b", Content.PKCS7),
        (".P7C", Content.PKCS7),
    ],
)
def test_the_suffix_tells_the_form(tmp_path: Path, suffix: str, content: Content) -> None:
    source, out = tmp_path / "leaf", tmp_path / f"out{suffix}"
    source.write_bytes(LEAF.public_bytes(Encoding.PEM))
    result = convert(source, out)
    assert result.exit_code == 0, result.stderr
    assert recognize(out.read_bytes()) is content
    assert read(out.read_bytes()).certificates == (LEAF,)
    assert mode_of(out) == 0o644 & ~_umask()


def _umask() -> int:
    current = os.umask(0o022)
    os.umask(current)
    return current


def test_others_may_read_a_public_file_and_never_write_it(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        write_file(tmp_path / "ca.pem", b"a root to trust", secret=False)
    finally:
        os.umask(before)
    assert mode_of(tmp_path / "ca.pem") == 0o644


@pytest.mark.parametrize("suffix", [".p12", ".pfx"])
def test_pkcs12_there_and_back(pem: Path, tmp_path: Path, password_file: Path, suffix: str) -> None:
    packed, back = tmp_path / f"pump{suffix}", tmp_path / "back.pem"
    assert convert(pem, packed, "--out-password-file", password_file).exit_code == 0
    assert mode_of(packed) == 0o600
    result = convert(packed, back, "--password-file", password_file)
    assert result.exit_code == 0, result.stderr
    assert "not encrypted" in result.stderr
    assert mode_of(back) == 0o600
    assert read(back.read_bytes()).certificates == CHAIN
    assert key_bytes(read(back.read_bytes())) == key_bytes(BUNDLE)


def test_a_locked_key_out(pem: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUT", PASSWORD.decode())
    out = tmp_path / "locked.pem"
    result = convert(pem, out, "--out-password-env", "OUT")
    assert result.exit_code == 0, result.stderr
    assert "not encrypted" not in result.stderr
    assert read(out.read_bytes()).locked_keys == 1


def test_a_locked_key_in_is_asked_for(tmp_path: Path, password_file: Path) -> None:
    source, out = tmp_path / "locked.pem", tmp_path / "open.key"
    source.write_bytes(KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(PASSWORD)))
    refused = convert(source, out)
    assert refused.exit_code == 1
    assert "--password-file" in refused.stderr
    assert not out.exists()
    assert convert(source, out, "--password-file", password_file).exit_code == 0
    assert mode_of(out) == 0o600
    assert key_bytes(read(out.read_bytes())) == key_bytes(BUNDLE)


def test_what_would_be_lost_is_told_and_nothing_is_written(pem: Path, tmp_path: Path) -> None:
    out = tmp_path / "pump.cer"
    result = convert(pem, out)
    assert result.exit_code == 1
    assert "the private key and 2 certificates beyond the first" in result.stderr
    assert "--drop" in result.stderr
    assert not out.exists()
    dropped = convert(pem, out, "--drop")
    assert dropped.exit_code == 0
    assert "Left out: the private key" in dropped.stderr
    assert read(out.read_bytes()) == Bundle((LEAF,))


def test_nothing_to_write_is_refused(chain: Path, tmp_path: Path) -> None:
    result = convert(chain, tmp_path / "out.key", "--drop")
    assert result.exit_code == 1
    assert "nothing in the file" in result.stderr


def test_an_unknown_suffix_lists_the_forms(chain: Path, tmp_path: Path) -> None:
    for name in ("out.xyz", "out"):
        result = convert(chain, tmp_path / name)
        assert result.exit_code == 2
        assert all(suffix in result.stderr for suffix in FORM_BY_SUFFIX)
        assert all(form in result.stderr for form in Form)
    assert convert(chain, tmp_path / "out.xyz", "--to", "p7b-pem").exit_code == 0
    assert b"BEGIN PKCS7" in (tmp_path / "out.xyz").read_bytes()


def test_to_overrides_the_suffix(tmp_path: Path) -> None:
    source, out = tmp_path / "leaf.der", tmp_path / "leaf.crt"
    source.write_bytes(LEAF.public_bytes(Encoding.DER))
    assert convert(source, out, "--to", "pem").exit_code == 0
    assert out.read_bytes() == LEAF.public_bytes(Encoding.PEM)


def test_standard_streams() -> None:
    result = convert("-", "-", "--to", "der", data=LEAF.public_bytes(Encoding.PEM))
    assert result.exit_code == 0
    assert result.stdout_bytes == LEAF.public_bytes(Encoding.DER)
    assert convert("-", "-", data=CHAIN_PEM).exit_code == 2


def test_nothing_is_overwritten_without_force(pem: Path, chain: Path) -> None:
    before = chain.read_bytes()
    result = convert(pem, chain)
    assert result.exit_code == 1
    assert "--force" in result.stderr
    assert chain.read_bytes() == before
    chain.chmod(0o644)
    assert convert(pem, chain, "--force").exit_code == 0
    assert mode_of(chain) == 0o600
    assert key_bytes(read(chain.read_bytes())) is not None


def test_a_file_onto_itself(pem: Path) -> None:
    assert convert(pem, pem, "--force").exit_code == 0
    assert read(pem.read_bytes()).certificates == CHAIN


def test_a_link_is_not_followed(pem: Path, tmp_path: Path) -> None:
    link, victim = tmp_path / "link.pem", tmp_path / "victim"
    victim.write_text("mine")
    link.symlink_to(victim)
    assert convert(pem, link).exit_code == 1
    assert convert(pem, link, "--force").exit_code == 0
    assert victim.read_text() == "mine"
    assert not link.is_symlink()


def test_a_failed_write_leaves_nothing(pem: Path, tmp_path: Path) -> None:
    directory = tmp_path / "out.pem"
    directory.mkdir()
    before = sorted(tmp_path.iterdir())
    result = convert(pem, directory, "--force")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: writing '")
    assert sorted(tmp_path.iterdir()) == before
    missing = convert(pem, tmp_path / "nowhere" / "out.pem")
    assert missing.exit_code == 1
    assert "no such file" in missing.stderr


def test_a_race_for_the_name_is_lost_politely(tmp_path: Path) -> None:
    path = tmp_path / "out"
    write_file(path, b"first", secret=True)
    with pytest.raises(FileExistsError):
        write_file(path, b"second", secret=True)
    assert path.read_bytes() == b"first"
    write_file(path, b"third", secret=False, force=True)
    assert path.read_bytes() == b"third"
    assert list(tmp_path.iterdir()) == [path]


def test_a_password_that_protects_nothing_is_refused(chain: Path, tmp_path: Path, password_file: Path) -> None:
    result = convert(chain, tmp_path / "out.p7b", "--out-password-file", password_file)
    assert result.exit_code == 1
    assert "password" in result.stderr


def test_old_systems_get_old_algorithms(pem: Path, tmp_path: Path, password_file: Path) -> None:
    out = tmp_path / "pump.pfx"
    assert convert(pem, out, "--to", "p12-legacy", "--out-password-file", password_file).exit_code == 0
    assert bytes.fromhex("2a864886f70d010c0103") in out.read_bytes()  # pbeWithSHAAnd3-KeyTripleDES-CBC
    assert read(out.read_bytes(), PASSWORD).certificates == CHAIN


def test_passwords_are_asked_for_on_a_terminal(pem: Path, tmp_path: Path) -> None:
    out = tmp_path / "pump.p12"
    shown = on_a_terminal(["convert", str(pem), str(out)], [PASSWORD, PASSWORD])
    assert PASSWORD not in shown
    assert read(out.read_bytes(), PASSWORD).certificates == CHAIN


def test_a_password_is_asked_for_to_read(tmp_path: Path) -> None:
    path = tmp_path / "pump.p12"
    path.write_bytes(write(BUNDLE, Form.P12, PASSWORD))
    assert b"belongs to certificate 1" in on_a_terminal(["inspect", str(path)], [PASSWORD])


def on_a_terminal(arguments: list[str], answers: list[bytes]) -> bytes:
    """Run `fleet cert` on a pseudo terminal, answer each prompt as it comes, and return what was shown."""
    main, end = pty.openpty()
    program = "from fleet.cli.cert import cert; cert()"
    process = subprocess.Popen([sys.executable, "-c", program, *arguments], stdin=end, stdout=end, stderr=end)
    os.close(end)
    shown = b""
    try:
        for answer in answers:
            shown += _until(main, b": ")
            os.write(main, answer + b"\n")
        shown += _until(main, None)
    finally:
        os.close(main)
        assert process.wait(PATIENCE_SECONDS) == 0, shown
    return shown


def _until(descriptor: int, end: bytes | None) -> bytes:
    """Read up to `end`; up to the close of the terminal for None."""
    shown = b""
    while end is None or not shown.endswith(end):
        try:
            part = os.read(descriptor, 4096)
        except OSError:  # Linux reports a closed terminal so
            break
        if not part:
            break
        shown += part
    return shown


def test_the_help_teaches() -> None:
    shown = convert("--help").output
    assert all(form in shown for form in Form)
    assert "Examples:" in shown
    assert "--drop" in shown
