"""Each row of the table of key types: its keys are generated, recognized, requested, and named in CSR attributes."""

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from fleet.wire import der
from fleet.wire.csr import build_csr, decode_csr
from fleet.wire.csrattrs import CsrAttributes, decode_csrattrs, encode_csrattrs
from fleet.wire.key_types import KEY_TYPES, OF_DEVICES, OF_MODELS, KeyType
from fleet.wire.keys import generate_key, key_type_of
from fleet.wire.serial import possession
from fleet.wire.spki import canonical_spki, encode_spki, load_spki


@pytest.fixture(scope="module", params=KEY_TYPES, ids=lambda each: each.name)
def made(request: pytest.FixtureRequest) -> tuple[KeyType, CertificateIssuerPrivateKeyTypes]:
    return request.param, generate_key(request.param.name)


def test_a_generated_key_is_recognized(made: tuple[KeyType, CertificateIssuerPrivateKeyTypes]) -> None:
    kind, key = made
    assert key_type_of(key.public_key()) == kind.name
    assert decode_csr(build_csr(key, [("2.5.4.3", "cam-1")], [])).key_type == kind.name


def test_its_identifiers_are_those_of_its_public_key(made: tuple[KeyType, CertificateIssuerPrivateKeyTypes]) -> None:
    kind, key = made
    algorithm = next(der.children(der.only_element(encode_spki(key.public_key()), der.SEQUENCE)))
    found = [der.dotted_oid(each.content) for each in der.children(algorithm) if each.tag == der.OBJECT_IDENTIFIER]
    assert found == [kind.algorithm, *([kind.curve] if kind.curve else [])]


def test_its_encoding_is_known_with_and_without_the_library(
    made: tuple[KeyType, CertificateIssuerPrivateKeyTypes],
) -> None:
    spki_der = encode_spki(made[1].public_key())
    assert canonical_spki(spki_der, load_der_public_key(spki_der)) == spki_der
    assert load_spki(spki_der).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == spki_der


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda each: each.name)
def test_a_point_has_one_canonical_encoding(curve: ec.EllipticCurve) -> None:
    key = ec.generate_private_key(curve).public_key()
    whole = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    point = key.public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    algorithm = next(der.children(der.only_element(whole, der.SEQUENCE))).whole
    compressed = der.sequence(algorithm, der.encode_element(der.BIT_STRING, b"\0" + point))
    assert canonical_spki(compressed, load_der_public_key(compressed)) == whole
    assert canonical_spki(whole, load_der_public_key(whole)) == whole


def test_its_csr_attribute_is_read_again(made: tuple[KeyType, CertificateIssuerPrivateKeyTypes]) -> None:
    wanted = CsrAttributes((made[0].name,))
    assert decode_csrattrs(encode_csrattrs(wanted)) == wanted


def test_devices_can_prove_that_they_have_it(made: tuple[KeyType, CertificateIssuerPrivateKeyTypes]) -> None:
    kind, key = made
    if kind.of_devices:
        possession.verify(key.public_key(), possession.sign(key, b"octets"), b"octets")


def test_the_names_that_models_devices_and_boards_use() -> None:
    assert OF_MODELS == ("EC-P256", "EC-P384", "RSA-2048+", "Ed25519", "ML-DSA-44", "ML-DSA-65")
    assert OF_DEVICES == ("EC-P256", "EC-P384", "RSA-2048+", "Ed25519")
