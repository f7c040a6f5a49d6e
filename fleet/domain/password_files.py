"""What is said of a password file that cannot be used."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fleet.config.secret_files import ExposedFile
from fleet.domain.errors import Invalid


@contextmanager
def password_file(setting: str, file: Path) -> Iterator[None]:
    """The block reads `file`, which `setting` names. Raises: Invalid (`bad-password-file`)."""
    try:
        yield
    except ExposedFile as error:
        raise Invalid("bad-password-file", f"{setting}: {error}", error.advice) from error
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        what = f"{setting}: {file} cannot be read: {why}."
        raise Invalid("bad-password-file", what, f"See: {setting} in fleet.toml") from error
