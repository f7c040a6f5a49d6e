"""The secrets by which a reverse proxy of this machine proves itself, as a file of the home holds them."""

import logging
import re
from pathlib import Path

from fleet.config.logs import log_event
from fleet.config.secret_files import ExposedFile, read_secret
from fleet.domain.errors import Invalid

log = logging.getLogger("fleet")

SECRETS_MAX = 2  # the present one, and its successor while it is being changed
FILE_SIZE_MAX = 4096

_SECRET = re.compile(rb"[!-~]{16,256}")


class ProxySecrets:
    """Those in use; () without a file. Raises: Invalid (`bad-secret-file`)."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self.current = proxy_secrets(file) if file is not None else ()

    def reload(self) -> None:
        """Read the file again. One that cannot be used leaves the old secrets in place."""
        if self._file is None:
            return
        try:
            self.current = proxy_secrets(self._file)
        except Invalid as error:
            log_event(
                log,
                logging.ERROR,
                "proxy-secrets",
                outcome="failed",
                kept="old",
                reason=error.message,
                advice=error.advice,
            )


def proxy_secrets(file: Path) -> tuple[bytes, ...]:
    """One secret a line. Raises: Invalid (`bad-secret-file`): the message repeats nothing of it."""
    try:
        content = read_secret(file, FILE_SIZE_MAX)
    except OSError as error:
        raise _bad(f"The secret file {file} cannot be read: {error.strerror}.") from error
    except ExposedFile as error:
        raise Invalid("bad-secret-file", f"The secret file {error}", error.advice) from error
    secrets = tuple(line for line in content.splitlines() if line)
    if not 1 <= len(secrets) <= SECRETS_MAX or not all(_SECRET.fullmatch(secret) for secret in secrets):
        raise _bad(f"The secret file {file} does not hold one secret or two.")
    return secrets


def _bad(message: str) -> Invalid:
    return Invalid(
        "bad-secret-file",
        message,
        "Write 16 to 256 ASCII characters without spaces on a line, such as those of: openssl rand -hex 32",
    )
