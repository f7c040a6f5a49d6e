"""Bootstrap credential: what the device was made with, kept so that it can enroll again without a person.

    HOME/bootstrap/key.pem cert.pem    a manufacturer's certificate (IDevID), or a claim's, with its chain
    HOME/bootstrap/token               a token that may be used again

cert.pem is written last: without it, there is no certificate. Whether it enrolls again is for the device's model.
"""

from dataclasses import dataclass, field
from pathlib import Path

from device_agent.store.atomic_files import made_folder, read_capped, write_atomically

FOLDER = "bootstrap"
FILE_SIZE_MAX = 64 * 1024  # bytes; as in the slots
TOKEN_SIZE_MAX = 4096  # bytes

_KEY, _CERTIFICATE, _TOKEN = "key.pem", "cert.pem", "token"


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """A certificate and its key as files, or a token; the certificate is preferred."""

    files: tuple[Path, Path] | None = None
    token: str = field(default="", repr=False)


def bootstrap_of(home: Path) -> Bootstrap | None:
    """What is kept in `home`; None if nothing is."""
    folder = home / FOLDER
    if (folder / _CERTIFICATE).is_file() and (folder / _KEY).is_file():
        return Bootstrap(files=(folder / _CERTIFICATE, folder / _KEY))
    try:
        token = read_capped(folder / _TOKEN, TOKEN_SIZE_MAX).decode("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return Bootstrap(token=token) if token else None


def keep_certificate(home: Path, chain_pem: bytes, key_pem: bytes) -> None:
    """Raises: OSError."""
    folder = _folder(home)
    write_atomically(folder / _KEY, key_pem)
    write_atomically(folder / _CERTIFICATE, chain_pem)


def keep_token(home: Path, token: str) -> None:
    """Raises: OSError."""
    write_atomically(_folder(home) / _TOKEN, token.encode("ascii"))


def _folder(home: Path) -> Path:
    folder = home / FOLDER
    made_folder(folder)
    return folder
