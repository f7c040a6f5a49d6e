"""Private key files of the CAs and servers: generation, writing with mode 0600, loading."""

import os
import secrets
from contextlib import suppress
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from fleet.config.secret_files import ExposedFile, LargeFile, read_secret
from fleet.domain.errors import Conflict, Invalid

KEY_FILE_SIZE_MAX = 4096  # a P-256 key in PEM takes 241 bytes; whatever is larger is some other file


def generate_key() -> ec.EllipticCurvePrivateKey:
    """A new P-256 key, the one type that every TLS stack and small device supports."""
    return ec.generate_private_key(ec.SECP256R1())


def write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    """Write `key` to the new file `path` as PKCS#8 PEM, mode 0600, on disk when this returns.

    Raises: Conflict (`key-exists`) when `path` exists: a key is never overwritten.
    """
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        # The mode is given at creation: there is no moment at which others could open the file.
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise Conflict("key-exists", f"{path} exists; a key is never overwritten.") from None
    with os.fdopen(handle, "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(file.fileno())


def load_or_make_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The P-256 key in the PEM file `path`, made there when there is none: whole, and of several who make one at once
    all get the same.

    Raises: as `load_key`.
    """
    if not path.exists():
        fresh = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
        try:
            write_key(fresh, generate_key())
            with suppress(FileExistsError):
                os.link(fresh, path)  # unlike a rename, it never overwrites
        finally:
            fresh.unlink(missing_ok=True)
    return load_key(path)


def load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The P-256 key in the PEM file `path`.

    Raises: Invalid: `key-exposed` when others may read the file, `bad-key` when it holds no P-256 key. OSError.
    """
    try:
        key = load_pem_private_key(read_secret(path, KEY_FILE_SIZE_MAX), password=None)
    except ExposedFile as error:
        raise Invalid("key-exposed", str(error), error.advice) from error
    except (LargeFile, ValueError, TypeError):
        # The parser's own message is left out: it may quote the file.
        raise Invalid("bad-key", f"{path} holds no private key in PEM without a password.") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise Invalid("bad-key", f"{path} holds a key that is not P-256.")
    return key
