from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat

from fleet.ca.keys import generate_key, load_key, load_or_make_key, write_key
from fleet.domain.errors import Conflict, Invalid


def test_a_written_key_comes_back_and_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    file, key = tmp_path / "x.key", generate_key()
    write_key(file, key)
    assert file.stat().st_mode & 0o777 == 0o600
    assert load_key(file).private_numbers() == key.private_numbers()


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "x.key"
    write_key(file, generate_key())
    before = file.read_bytes()
    with pytest.raises(Conflict) as refused:
        write_key(file, generate_key())
    assert refused.value.code == "key-exists"
    assert file.read_bytes() == before


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "x.key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Conflict):
        write_key(tmp_path / "x.key", generate_key())
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_an_exposed_key_is_refused_with_advice(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "x.key"
    write_key(file, generate_key())
    file.chmod(mode)
    with pytest.raises(Invalid) as refused:
        load_key(file)
    assert refused.value.code == "key-exposed"
    assert "chmod 600" in refused.value.advice


def test_whatever_is_no_p256_key_is_refused_without_repeating_it(tmp_path: Path) -> None:
    p384 = ec.generate_private_key(ec.SECP384R1())
    plain, format_, none = Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    contents = [
        b"",
        b"secret words",
        p384.private_bytes(plain, format_, none),
        generate_key().private_bytes(plain, format_, BestAvailableEncryption(b"pw")),
        generate_key().private_bytes(plain, format_, none)[:100],
        b"\n" * 100_000 + generate_key().private_bytes(plain, format_, none),
    ]
    for n, content in enumerate(contents):
        file = tmp_path / f"{n}.key"
        file.write_bytes(content)
        file.chmod(0o600)
        with pytest.raises(Invalid) as refused:
            load_key(file)
        assert refused.value.code == "bad-key"
        assert "secret" not in refused.value.message


def test_of_several_who_make_one_at_once_all_get_the_same(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda _: load_or_make_key(tmp_path / "x.key"), range(16)))
    assert len({key.private_numbers() for key in keys}) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["x.key"]
    assert (tmp_path / "x.key").stat().st_mode & 0o777 == 0o600


def test_one_that_is_there_is_loaded_or_refused_and_never_replaced(tmp_path: Path) -> None:
    file = tmp_path / "x.key"
    file.write_bytes(b"something")
    file.chmod(0o600)
    with pytest.raises(Invalid, match="no private key"):
        load_or_make_key(file)
    assert file.read_bytes() == b"something"
