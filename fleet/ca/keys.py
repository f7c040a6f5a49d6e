"""Private key files of the CAs and servers: generation, writing with mode 0600, loading."""

from contextlib import suppress
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from fleet.config.durable_files import write_file
from fleet.config.secret_files import ExposedFile, read_secret
from fleet.config.small_files import LargeFile
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
        write_file(path, pem, secret=True)
    except FileExistsError:
        raise Conflict("key-exists", f"{path} exists; a key is never overwritten.") from None


def load_or_make_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The P-256 key in the PEM file `path`, made there when there is none: whole, and of several who make one at once
    all get the same.

    Raises: as `load_key`.
    """
    if not path.exists():
        with suppress(Conflict):  # another has made one meanwhile
            write_key(path, generate_key())
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
