"""One Bundle out in one form; and an error that says what the form can't hold, before anything is lost."""

from collections.abc import Callable
from functools import partial

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat

from fleet.wire import armor
from fleet.wire.encodings.bundle import FORM_TITLES, Bundle, Form, PasswordNeeded, Request, WouldLose, check_password
from fleet.wire.encodings.pkcs12 import can_be_named, write_pkcs12
from fleet.wire.errors import Unsupported
from fleet.wire.parsing import library_errors
from fleet.wire.pkcs7 import join_signed_data

_Encodable = x509.Certificate | Request | x509.CertificateRevocationList


def write(bundle: Bundle, form: Form, password: bytes | None = None, drop: bool = False) -> bytes:
    """`bundle` in `form`. `password` encrypts the private key (PKCS#8), or the whole of PKCS#12, which must have one.

    With `drop`, what the form can't hold is left out; DER then keeps the first certificate, or else the first request,
    revocation list or key.

    Raises: WouldLose naming what would be left out; Unsupported when nothing is left to write, or when a password is
    given and nothing in the form can be encrypted; PasswordNeeded.
    """
    check_password(password)
    lost = losses(bundle, form)
    if lost and not drop:
        raise WouldLose(form, lost)
    if not any(_kept(bundle, form).values()):
        raise Unsupported(f"There is nothing in the file that {FORM_TITLES[form]} can hold.")
    if password is not None and not holds_secret(bundle, form):
        raise Unsupported(f"Nothing in this {FORM_TITLES[form]} output can be protected by a password.")
    return _WRITERS[form](bundle, password)


def has_room_for_key(bundle: Bundle, form: Form) -> bool:
    """Whether `form` can hold a private key beside what else `bundle` holds."""
    match form:
        case Form.PEM | Form.KEY | Form.P12 | Form.P12_LEGACY:
            return True
        case Form.DER:
            return not any(_groups(bundle).values())
        case Form.P7B | Form.P7B_PEM:
            return False


def holds_secret(bundle: Bundle, form: Form) -> bool:
    """Whether `bundle` written in `form` holds a private key, or is encrypted as a whole."""
    if form in (Form.P12, Form.P12_LEGACY):
        return True
    return bundle.private_key is not None and has_room_for_key(bundle, form)


def losses(bundle: Bundle, form: Form) -> tuple[str, ...]:
    """What `bundle` holds and `form` can't, each in words; () when nothing is lost."""
    keeps = _kept(bundle, form)
    lost = []
    if bundle.private_key is not None and not keeps["private key"]:
        lost.append("the private key")
    if bundle.locked_keys:
        lost.append("the encrypted private key, whose password was not given")
    for what, items in _groups(bundle).items():
        dropped = len(items) - keeps[what]
        if dropped > 0:
            beyond = " beyond the first" if keeps[what] else ""
            lost.append(f"{dropped} {what}{'s' if dropped > 1 else ''}{beyond}")
    takes_names = form in (Form.P12, Form.P12_LEGACY)
    names = [name for name in bundle.friendly_names if name is not None and not (takes_names and can_be_named(name))]
    if names:
        lost.append(f"the friendly name{'s' if len(names) > 1 else ''} {', '.join(map(repr, names))}")
    return (*lost, *bundle.others)


def _groups(bundle: Bundle) -> dict[str, tuple[_Encodable, ...]]:
    """The lists in a bundle, by what one item is called."""
    return {
        "certificate": bundle.certificates,
        "certificate request": bundle.requests,
        "revocation list": bundle.revocation_lists,
    }


def _kept(bundle: Bundle, form: Form) -> dict[str, int]:
    """How many of each `form` can hold."""
    key = int(bundle.private_key is not None)
    counts = {what: len(items) for what, items in _groups(bundle).items()} | {"private key": key}
    nothing = dict.fromkeys(counts, 0)
    match form:
        case Form.PEM:
            return counts
        case Form.P7B | Form.P7B_PEM:
            return counts | {"private key": 0, "certificate request": 0}
        case Form.P12 | Form.P12_LEGACY:
            return counts | {"certificate request": 0, "revocation list": 0}
        case Form.KEY:
            return nothing | {"private key": key}
        case Form.DER:
            first = next((what for what, items in _groups(bundle).items() if items), "private key")
            return nothing | {first: 1 if first != "private key" else key}


def _write_pem(bundle: Bundle, password: bytes | None) -> bytes:
    """The key first, as Python's and nginx's loaders like it, then its certificate and the chain."""
    parts = [_key(bundle.private_key, Encoding.PEM, password)] if bundle.private_key is not None else []
    parts += [each.public_bytes(Encoding.PEM) for items in _groups(bundle).values() for each in items]
    return b"".join(parts)


def _write_der(bundle: Bundle, password: bytes | None) -> bytes:
    for items in _groups(bundle).values():
        if items:
            return items[0].public_bytes(Encoding.DER)
    return _only_key(bundle, Encoding.DER, password)


def _write_p7b(bundle: Bundle, password: bytes | None) -> bytes:
    return join_signed_data(
        (each.public_bytes(Encoding.DER) for each in bundle.certificates),
        (each.public_bytes(Encoding.DER) for each in bundle.revocation_lists),
    )


def _write_p7b_pem(bundle: Bundle, password: bytes | None) -> bytes:
    return armor.pem("PKCS7", _write_p7b(bundle, password)).encode("ascii")


def _only_key(bundle: Bundle, encoding: Encoding, password: bytes | None) -> bytes:
    if bundle.private_key is None:
        raise Unsupported("There is no private key to write.")
    return _key(bundle.private_key, encoding, password)


def _key(key: PrivateKeyTypes, encoding: Encoding, password: bytes | None) -> bytes:
    if password == b"":
        raise PasswordNeeded("An empty password protects nothing; give one, or none at all.")
    with library_errors("private key"):
        encryption = NoEncryption() if password is None else BestAvailableEncryption(password)
        return key.private_bytes(encoding, PrivateFormat.PKCS8, encryption)


_WRITERS: dict[Form, Callable[[Bundle, bytes | None], bytes]] = {
    Form.PEM: _write_pem,
    Form.DER: _write_der,
    Form.P7B: _write_p7b,
    Form.P7B_PEM: _write_p7b_pem,
    Form.P12: write_pkcs12,
    Form.P12_LEGACY: partial(write_pkcs12, legacy=True),
    Form.KEY: lambda bundle, password: _only_key(bundle, Encoding.PEM, password),
}
