"""What openssl, keytool and asn1crypto make of our files, and we of theirs."""

import subprocess
from pathlib import Path

import pytest
from asn1crypto import cms, pkcs12
from cryptography.hazmat.primitives.serialization import Encoding

from fleet.wire.encodings.bundle import Bundle, Form, WouldLose, belongs_to
from fleet.wire.encodings.reading import read
from fleet.wire.encodings.writing import write
from fleet.wire.errors import Unsupported
from tests.wire.encodings.material import (
    BUNDLE,
    CHAIN,
    CHAIN_PEM,
    ISSUING,
    KEY_PEM,
    LEAF,
    NEEDS_KEYTOOL,
    NEEDS_OPENSSL,
    PASSWORD,
    REQUEST,
    REVOCATION_LIST,
    ROOT,
    key_bytes,
    openssl,
)

STORE_PASSWORD = PASSWORD.decode().replace(" ", "-")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A directory with the chain, the key and the password as openssl wants them."""
    (tmp_path / "leaf.pem").write_bytes(LEAF.public_bytes(Encoding.PEM))
    (tmp_path / "chain.pem").write_bytes(CHAIN_PEM)
    (tmp_path / "key.pem").write_bytes(KEY_PEM)
    (tmp_path / "password").write_text(STORE_PASSWORD)
    return tmp_path


def keytool(files: Path, *arguments: str) -> str:
    # Its start is most of what it does: no compiler for what runs for long, no threads that collect garbage.
    quick = ["-J-XX:TieredStopAtLevel=1", "-J-XX:+UseSerialGC"]
    command = ["keytool", *quick, *arguments, "-storepass:file", str(files / "password")]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@NEEDS_OPENSSL
@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("-keypbe", "PBE-SHA1-3DES", "-certpbe", "PBE-SHA1-3DES", "-macalg", "sha1"),
        ("-keypbe", "AES-256-CBC", "-certpbe", "NONE"),
        ("-nomac",),
        ("-legacy",),
    ],
    ids=["default", "3des", "clear-certificates", "no-mac", "rc2"],
)
def test_pkcs12_of_openssl(files: Path, arguments: tuple[str, ...]) -> None:
    out = files / "o.p12"
    done = subprocess.run(
        [
            *("openssl", "pkcs12", "-export", "-in", str(files / "chain.pem"), "-inkey", str(files / "key.pem")),
            *("-name", "pump", "-passout", f"file:{files / 'password'}", "-out", str(out), *arguments),
        ],
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.skip("this openssl has no legacy algorithms")
    found = read(out.read_bytes(), STORE_PASSWORD.encode())
    assert found.certificates == CHAIN
    assert found.friendly_names[0] == "pump"
    assert key_bytes(found) == key_bytes(BUNDLE)


@NEEDS_OPENSSL
def test_openssl_reads_our_pkcs12(files: Path) -> None:
    path = files / "ours.p12"
    path.write_bytes(write(BUNDLE, Form.P12, STORE_PASSWORD.encode()))
    shown = openssl("pkcs12", "-in", str(path), "-passin", f"file:{files / 'password'}", "-nodes")
    assert key_bytes(read(shown)) == key_bytes(BUNDLE)
    assert set(read(shown).certificates) == set(CHAIN)
    info = subprocess.run(
        ["openssl", "pkcs12", "-in", str(path), "-passin", f"file:{files / 'password'}", "-info", "-noout"],
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    assert "AES-256-CBC" in info
    assert "hmacWithSHA256" in info
    assert "MAC: sha256" in info


@NEEDS_OPENSSL
@pytest.mark.parametrize("arguments", [("-aes256",), ("-aes-128-cbc", "-traditional")], ids=["pkcs8", "old"])
def test_locked_keys_of_openssl(files: Path, arguments: tuple[str, ...]) -> None:
    locked = openssl("pkey", "-in", str(files / "key.pem"), "-passout", f"file:{files / 'password'}", *arguments)
    assert read(locked).locked_keys == 1
    assert key_bytes(read(locked, STORE_PASSWORD.encode())) == key_bytes(BUNDLE)


@NEEDS_OPENSSL
def test_openssl_reads_our_locked_key(files: Path) -> None:
    locked = write(Bundle(private_key=BUNDLE.private_key), Form.KEY, STORE_PASSWORD.encode())
    shown = openssl("pkey", "-passin", f"file:{files / 'password'}", data=locked)
    assert key_bytes(read(shown)) == key_bytes(BUNDLE)


@NEEDS_OPENSSL
@pytest.mark.parametrize("encoding", ["DER", "PEM"])
def test_pkcs7_of_openssl(files: Path, encoding: str) -> None:
    data = openssl("crl2pkcs7", "-nocrl", "-certfile", str(files / "chain.pem"), "-outform", encoding)
    assert read(data) == Bundle(certificates=CHAIN)


@NEEDS_OPENSSL
@pytest.mark.parametrize(("form", "encoding"), [(Form.P7B, "DER"), (Form.P7B_PEM, "PEM")])
def test_openssl_reads_our_pkcs7(form: Form, encoding: str) -> None:
    data = write(Bundle(certificates=CHAIN, revocation_lists=(REVOCATION_LIST,)), form)
    shown = openssl("pkcs7", "-inform", encoding, "-print_certs", data=data)
    assert set(read(shown).certificates) == set(CHAIN)


@NEEDS_OPENSSL
def test_text_around_pem_as_openssl_writes_it(files: Path) -> None:
    shown = openssl("x509", "-in", str(files / "leaf.pem"), "-text")
    assert b"Certificate:" in shown
    assert read(shown) == Bundle(certificates=(LEAF,))
    trusted = openssl("x509", "-in", str(files / "leaf.pem"), "-trustout", "-addtrust", "clientAuth")
    assert read(trusted).certificates == (LEAF,)


@NEEDS_OPENSSL
def test_requests_and_lists_go_through_openssl() -> None:
    request = openssl("req", "-inform", "DER", "-outform", "PEM", data=write(Bundle(requests=(REQUEST,)), Form.DER))
    assert read(request).requests == (REQUEST,)
    listed = write(Bundle(revocation_lists=(REVOCATION_LIST,)), Form.DER)
    assert read(openssl("crl", "-inform", "DER", "-outform", "PEM", data=listed)).revocation_lists == (REVOCATION_LIST,)


@NEEDS_KEYTOOL
def test_keytool_reads_our_pkcs12(files: Path) -> None:
    path = files / "ours.p12"
    path.write_bytes(
        write(Bundle(CHAIN, BUNDLE.private_key, friendly_names=("pump",)), Form.P12, STORE_PASSWORD.encode())
    )
    shown = keytool(files, "-J-Duser.language=en", "-list", "-v", "-keystore", str(path))
    assert "PrivateKeyEntry" in shown
    assert "Alias name: pump" in shown
    assert "Certificate chain length: 3" in shown


@NEEDS_KEYTOOL
def test_keytool_takes_our_truststore(files: Path) -> None:
    path = files / "trust.p12"
    store = Bundle((ROOT, ISSUING), friendly_names=("root", "issuing"))
    path.write_bytes(write(store, Form.P12, STORE_PASSWORD.encode()))
    shown = keytool(files, "-J-Duser.language=en", "-list", "-keystore", str(path))
    assert shown.count("trustedCertEntry") == 2


@NEEDS_KEYTOOL
def test_we_read_keytool_s_pkcs12(files: Path) -> None:
    path = files / "java.p12"
    keytool(
        files,
        *("-genkeypair", "-alias", "dev", "-keyalg", "EC", "-groupname", "secp256r1", "-dname", "CN=java"),
        *("-storetype", "PKCS12", "-keystore", str(path)),
    )
    found = read(path.read_bytes(), STORE_PASSWORD.encode())
    assert found.friendly_names == ("dev",)
    assert found.private_key is not None
    assert [each.subject.rfc4514_string() for each in found.certificates] == ["CN=java"]


def test_asn1crypto_reads_our_pkcs7() -> None:
    data = write(Bundle(certificates=CHAIN, revocation_lists=(REVOCATION_LIST,)), Form.P7B)
    content = cms.ContentInfo.load(data, strict=True)
    signed = content["content"]
    assert {each.chosen.dump() for each in signed["certificates"]} == {
        each.public_bytes(Encoding.DER) for each in CHAIN
    }
    assert [each.chosen.dump() for each in signed["crls"]] == [REVOCATION_LIST.public_bytes(Encoding.DER)]
    assert content.dump(force=True) == data


def test_asn1crypto_reads_our_pkcs12() -> None:
    store = pkcs12.Pfx.load(write(BUNDLE, Form.P12, PASSWORD), strict=True)
    assert store["version"].native == "v3"
    assert store["mac_data"]["mac"]["digest_algorithm"]["algorithm"].native == "sha256"


@NEEDS_OPENSSL
def test_a_key_for_pss_alone_is_named_and_never_written_as_another(tmp_path: Path) -> None:
    key, whole = tmp_path / "key.pem", tmp_path / "whole.pem"
    openssl("genpkey", "-algorithm", "RSA-PSS", "-pkeyopt", "rsa_keygen_bits:2048", "-out", str(key))
    certificate = openssl("req", "-x509", "-new", "-key", str(key), "-subj", "/CN=pump", "-days", "9")
    whole.write_bytes(key.read_bytes() + certificate)
    found = read(whole.read_bytes())
    assert (len(found.certificates), found.private_key) == (1, None)
    assert "RSASSA-PSS" in found.others[0]
    for form in (Form.PEM, Form.P12):
        with pytest.raises(WouldLose, match="RSASSA-PSS"):
            write(found, form, b"secret")
    sealed = openssl("pkey", "-in", str(key), "-aes256", "-passout", "pass:secret")
    opened = read(sealed + certificate, b"secret")  # the kind of key is inside the encryption, and in the certificate
    assert opened.private_key is not None
    assert not belongs_to(opened.certificates[0], opened.private_key)
    with pytest.raises(Unsupported, match="belongs to none"):
        write(opened, Form.P12, b"secret")


@NEEDS_OPENSSL
@pytest.mark.parametrize(("cipher", "named"), [("aria-256-cbc", "ARIA"), ("camellia-128-cbc", "Camellia")])
def test_a_cipher_that_is_not_known_is_named(tmp_path: Path, cipher: str, named: str) -> None:
    key = tmp_path / "key.pem"
    openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", str(key))
    sealed = openssl("pkcs8", "-topk8", "-v2", cipher, "-in", str(key), "-passout", "pass:secret")
    for password in (b"secret", b"another"):
        with pytest.raises(Unsupported, match=named):
            read(sealed, password)


@NEEDS_OPENSSL
@NEEDS_KEYTOOL
def test_a_secret_key_beside_the_private_one_is_left_out_by_name(files: Path) -> None:
    store = ("-storetype", "PKCS12", "-keystore", str(files / "both.p12"))
    keytool(files, "-genkeypair", *store, "-alias", "pair", "-keyalg", "EC", "-dname", "CN=pump")
    keytool(files, "-genseckey", *store, "-alias", "secret", "-keyalg", "AES", "-keysize", "128")
    found = read((files / "both.p12").read_bytes(), STORE_PASSWORD.encode())
    assert found.private_key is not None
    assert belongs_to(found.certificates[0], found.private_key)
    assert found.others == ("a secret key",)


def test_pem_joined_without_a_line_end_is_read() -> None:
    pem = LEAF.public_bytes(Encoding.PEM)
    assert read(pem.rstrip() + pem).certificates == (LEAF, LEAF)
