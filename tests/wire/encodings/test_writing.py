"""Every form out and in again; and what a form can't hold is told before it is lost."""

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, mldsa, x25519
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.wire.encodings.bundle import FORM_BY_SUFFIX, FORM_TITLES, Bundle, Form, PasswordNeeded, WouldLose
from fleet.wire.encodings.reading import read
from fleet.wire.encodings.writing import holds_secret, losses, write
from fleet.wire.errors import Unsupported
from tests.wire.encodings.material import (
    BUNDLE,
    CHAIN,
    ISSUING,
    KEY,
    LEAF,
    PASSWORD,
    REQUEST,
    REVOCATION_LIST,
    ROOT,
    key_bytes,
)

NAMED = replace(BUNDLE, friendly_names=("pump", None, "root"))
EVERYTHING = replace(NAMED, requests=(REQUEST,), revocation_lists=(REVOCATION_LIST,), others=("a public key",))
PKCS12_FORMS = (Form.P12, Form.P12_LEGACY)


def same(left: Bundle, right: Bundle) -> bool:
    return key_bytes(left) == key_bytes(right) and replace(left, private_key=None) == replace(right, private_key=None)


@pytest.mark.parametrize("form", PKCS12_FORMS)
def test_pkcs12_goes_round(form: Form) -> None:
    assert same(read(write(NAMED, form, PASSWORD), PASSWORD), NAMED)


@pytest.mark.parametrize("password", [None, PASSWORD])
def test_pem_goes_round(password: bytes | None) -> None:
    whole = replace(BUNDLE, requests=(REQUEST,), revocation_lists=(REVOCATION_LIST,))
    written = write(whole, Form.PEM, password)
    assert same(read(written, password), whole)
    assert (b"ENCRYPTED" in written) is (password is not None)


@pytest.mark.parametrize("form", [Form.P7B, Form.P7B_PEM])
def test_pkcs7_goes_round(form: Form) -> None:
    whole = Bundle(certificates=CHAIN, revocation_lists=(REVOCATION_LIST,))
    assert read(write(whole, form)) == whole


@pytest.mark.parametrize(
    "single",
    [
        Bundle((LEAF,)),
        Bundle(requests=(REQUEST,)),
        Bundle(revocation_lists=(REVOCATION_LIST,)),
        Bundle(private_key=KEY),
    ],
    ids=["certificate", "request", "list", "key"],
)
def test_der_holds_a_single_thing(single: Bundle) -> None:
    assert same(read(write(single, Form.DER)), single)


@pytest.mark.parametrize("form", [Form.KEY, Form.DER])
@pytest.mark.parametrize("password", [None, PASSWORD])
def test_a_key_alone(form: Form, password: bytes | None) -> None:
    alone = Bundle(private_key=KEY)
    assert same(read(write(alone, form, password), password), alone)


@pytest.mark.parametrize(
    ("form", "bundle", "words"),
    [
        (Form.PEM, NAMED, ("the friendly names 'pump', 'root'",)),
        (Form.DER, BUNDLE, ("the private key", "2 certificates beyond the first")),
        (Form.DER, Bundle(CHAIN[:2]), ("1 certificate beyond the first",)),
        (Form.P7B, BUNDLE, ("the private key",)),
        (Form.P7B_PEM, BUNDLE, ("the private key",)),
        (Form.KEY, BUNDLE, ("3 certificates",)),
        (Form.P12, EVERYTHING, ("1 certificate request", "1 revocation list", "a public key")),
        (Form.PEM, Bundle((LEAF,), locked_keys=1), ("the encrypted private key, whose password was not given",)),
        (Form.PEM, Bundle((LEAF,), others=("a key held by a TPM",)), ("a key held by a TPM",)),
    ],
)
def test_what_would_be_lost_is_named(form: Form, bundle: Bundle, words: tuple[str, ...]) -> None:
    assert losses(bundle, form) == words
    with pytest.raises(WouldLose) as caught:
        write(bundle, form, PASSWORD if form in PKCS12_FORMS else None)
    assert caught.value.lost == words
    assert all(word in str(caught.value) for word in words)
    assert FORM_TITLES[form] in str(caught.value)


def test_dropping_leaves_the_rest() -> None:
    assert read(write(EVERYTHING, Form.DER, drop=True)) == Bundle((LEAF,))
    assert read(write(EVERYTHING, Form.P7B, drop=True)).certificates == CHAIN
    assert same(read(write(EVERYTHING, Form.KEY, drop=True)), Bundle(private_key=KEY))
    assert same(read(write(EVERYTHING, Form.P12, PASSWORD, drop=True), PASSWORD), NAMED)


@pytest.mark.parametrize(
    ("form", "bundle"),
    [
        (Form.P7B, Bundle(private_key=KEY)),
        (Form.KEY, Bundle((LEAF,))),
        (Form.PEM, Bundle()),
        (Form.DER, Bundle(locked_keys=1)),
    ],
)
def test_nothing_left_is_refused_even_when_dropping(form: Form, bundle: Bundle) -> None:
    with pytest.raises(Unsupported, match="nothing in the file"):
        write(bundle, form, drop=True)


@pytest.mark.parametrize("form", PKCS12_FORMS)
@pytest.mark.parametrize("password", [None, b""])
def test_pkcs12_wants_a_password(form: Form, password: bytes | None) -> None:
    with pytest.raises(PasswordNeeded):
        write(BUNDLE, form, password)


def test_an_empty_password_protects_nothing() -> None:
    with pytest.raises(PasswordNeeded):
        write(BUNDLE, Form.PEM, b"")


@pytest.mark.parametrize("form", [Form.PEM, Form.DER, Form.P7B, Form.P7B_PEM])
def test_a_password_that_would_protect_nothing_is_refused(form: Form) -> None:
    with pytest.raises(Unsupported, match="password"):
        write(Bundle((LEAF,)), form, PASSWORD)


def test_pkcs12_without_a_key_is_a_truststore() -> None:
    store = Bundle((ROOT, ISSUING), friendly_names=("root", None))
    found = read(write(store, Form.P12, PASSWORD), PASSWORD)
    assert set(found.certificates) == {ROOT, ISSUING}
    assert set(found.friendly_names) == {"root", None}


def test_pkcs12_wants_a_pair() -> None:
    with pytest.raises(Unsupported, match="none of the certificates"):
        write(Bundle((ROOT,), private_key=KEY), Form.P12, PASSWORD)
    with pytest.raises(Unsupported, match="kind"):
        write(Bundle((ROOT,), private_key=x25519.X25519PrivateKey.generate()), Form.P12, PASSWORD)


def test_keys_of_newer_kinds_in_pem() -> None:
    alone = Bundle(private_key=mldsa.MLDSA65PrivateKey.generate())
    assert same(read(write(alone, Form.PEM)), alone)


@pytest.mark.parametrize("form", list(Form))
def test_what_is_secret(form: Form) -> None:
    assert holds_secret(BUNDLE, form) is (form in (Form.PEM, Form.KEY, *PKCS12_FORMS))
    assert holds_secret(Bundle((LEAF,)), form) is (form in PKCS12_FORMS)
    assert holds_secret(Bundle(private_key=KEY), form) is (form not in (Form.P7B, Form.P7B_PEM))


def test_every_form_has_a_suffix_or_is_a_variant() -> None:
    assert set(Form) - set(FORM_BY_SUFFIX.values()) == {Form.P7B_PEM, Form.P12_LEGACY}


_NAMES = st.lists(
    st.one_of(st.none(), st.text(st.characters(max_codepoint=0xFFFF, categories=["L", "N"]), min_size=1, max_size=20)),
    min_size=3,
    max_size=3,
)


@settings(max_examples=15, deadline=None)  # each pays for two key derivations
@given(_NAMES, st.text(st.characters(categories=["L", "N", "P", "S", "Z"]), min_size=1, max_size=30))
def test_any_names_and_any_password_go_round(names: list[str | None], text: str) -> None:
    password = text.encode()
    bundle = replace(BUNDLE, friendly_names=tuple(names) if any(names) else ())
    assert same(read(write(bundle, Form.P12, password), password), bundle)


def test_a_friendly_name_that_pkcs12_has_no_room_for_is_told() -> None:
    bundle = replace(BUNDLE, friendly_names=("pump \U0001f40c", "issuing", None))
    with pytest.raises(WouldLose, match="friendly name"):
        write(bundle, Form.P12, PASSWORD)
    kept = read(write(bundle, Form.P12, PASSWORD, drop=True), PASSWORD)
    assert kept.friendly_names == (None, "issuing", None)


def test_a_password_with_a_nul_is_refused() -> None:
    with pytest.raises(Unsupported, match="NUL"):
        write(BUNDLE, Form.P12, b"a\0b")


def test_another_key_with_the_same_certificates_is_no_pair() -> None:
    stranger = replace(BUNDLE, private_key=ec.generate_private_key(ec.SECP256R1()))
    with pytest.raises(Unsupported):
        write(stranger, Form.P12, PASSWORD)
