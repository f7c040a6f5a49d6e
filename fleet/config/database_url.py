"""Where a PostgreSQL database is: a URL that may be shown, and apart from it the secret that one may carry.

    postgresql://USER@HOST:PORT/DATABASE?sslmode=verify-full&sslrootcert=/etc/fleet/db-ca.pem

Standard URLs of libpq, of which a known part is accepted. An unknown parameter is refused: the driver would hand it to
the server as a setting of the session, and one of those decides what is durable.
"""

import re
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit

from msgspec import Struct

URL_SIZE_MAX = 4096
SCHEMES = ("postgresql", "postgres")
PARAMETERS = (
    "host", "port", "user", "database", "dbname", "password", "passfile", "sslmode", "sslrootcert", "sslcert", "sslkey",
    "sslcrl", "target_session_attrs",
)  # fmt: skip

_HOST = r"(\[[0-9A-Fa-f:.%]*\]|[^:\[\],]*)(:[0-9]{0,5})?"
_HOSTS = rf"({_HOST},)*{_HOST}"


class DatabaseUrl(Struct, frozen=True):
    """A PostgreSQL URL that has been looked at."""

    dsn: str
    """What the driver connects to. May hold a password: never print or log it."""
    shown: str
    """The same without a password."""
    has_password: bool

    def __str__(self) -> str:
        return self.shown

    def __repr__(self) -> str:
        return f"DatabaseUrl({self.shown!r})"


def parse_database_url(text: str) -> DatabaseUrl:
    """`text` as a DatabaseUrl. Raises: ValueError: not repeating the text, which may hold a password."""
    if len(text) > URL_SIZE_MAX or not text.isprintable() or " " in text:
        raise ValueError("is not a URL: it is too long, or holds a space or a control character")
    try:
        parts = urlsplit(text)
        if "@" in parts.path + parts.query or not re.fullmatch(_HOSTS, parts.netloc.rpartition("@")[2]):
            # As in u:half/other@host: what is in the place of a host is the first half of a password.
            raise ValueError("no host")
        parameters = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        message = "is not a URL that can be read; in a password, %-encode what is no letter and no digit"
        raise ValueError(message) from None
    if parts.scheme not in SCHEMES or not text.startswith(f"{parts.scheme}://") or parts.fragment:
        raise ValueError("is not postgresql://USER@HOST[:PORT]/DATABASE")
    for name, _ in parameters:
        if name not in PARAMETERS:
            import difflib  # for the hint alone

            close = difflib.get_close_matches(name, PARAMETERS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(PARAMETERS)}"
            raise ValueError(f"has the unknown parameter {name[:40]!r}; {hint}")
    if not parts.path.strip("/") and not any(name in ("database", "dbname") for name, _ in parameters):
        raise ValueError("names no database: postgresql://USER@HOST[:PORT]/DATABASE")
    who = parts.netloc.rpartition("@")[0]
    has_password = ":" in who or any(name == "password" for name, _ in parameters)
    return DatabaseUrl(text, _without_password(parts, parameters), has_password)


def _without_password(parts: SplitResult, parameters: list[tuple[str, str]]) -> str:
    who, at, where = parts.netloc.rpartition("@")
    query = urlencode([(name, value) for name, value in parameters if name != "password"], safe="/:,")
    return parts._replace(netloc=f"{who.partition(':')[0]}{at}{where}", query=query).geturl()
