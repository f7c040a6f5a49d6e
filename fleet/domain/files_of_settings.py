"""What is said of a file that fleet.toml names and that cannot be used: the setting, the file, why, and what to do."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fleet.config.secret_files import ExposedFile
from fleet.domain.errors import Invalid
from fleet.wire.errors import WireError

PEM_AND_OTHERS = 'Give a file with certificates in PEM, DER or PKCS#7, or "system".'


@contextmanager
def password_file(setting: str, file: Path) -> Iterator[None]:
    """The block reads `file`, which `setting` names. Raises: Invalid (`bad-password-file`)."""
    try:
        yield
    except ExposedFile as error:
        raise Invalid("bad-password-file", f"{setting}: {error}", error.advice) from error
    except (OSError, UnicodeDecodeError) as error:
        what = f"{setting}: {file} cannot be read: {why_not(error)}."
        raise Invalid("bad-password-file", what, f"See: {setting} in fleet.toml") from error


@contextmanager
def certificate_file(
    setting: str, file: Path, code: str = "bad-certificate-file", advice: str = PEM_AND_OTHERS
) -> Iterator[None]:
    """The block reads and uses `file`, which `setting` names. Raises: Invalid (`code`)."""
    try:
        yield
    except (OSError, ValueError, WireError) as error:  # ssl.SSLError is an OSError
        raise Invalid(code, f"{setting}: {file} cannot be used: {why_not(error)}.", advice) from error


def why_not(error: Exception) -> str:
    """Without the file's name, which the sentence has, and its content."""
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    return ((isinstance(error, OSError) and error.strerror) or str(error)).rstrip(".")
