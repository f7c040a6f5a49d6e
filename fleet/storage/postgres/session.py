"""Sessions with PostgreSQL: opening, checking, and the errors that their failures become.

A session never reports a commit that is not on disk, never waits without a limit, and leaves no locks behind when its
network fails.
"""

from functools import partial
from typing import Any

import asyncpg

from fleet.config.database_url import DatabaseUrl
from fleet.domain.errors import FleetError, Invalid, NotFound, Unavailable
from fleet.storage.errors import reported

Session = Any
"""An asyncpg.Connection; the driver carries no types."""

SCHEMA = "fleet"
"""All our tables are in this schema, so that a database may be shared with other programs."""
ADVICE_NO_REGISTRY = (
    "Name the database of your fleet, or restore its backup into this one and a new home with: fleet restore --database"
)
VERSION_MIN = 150_000  # PostgreSQL 15, as server_version_num says it
CONNECT_SECONDS_MAX = 5.0
STATEMENT_SECONDS_MAX = 10.0  # for any one statement: beyond that the network or the server has failed
WAIT_SECONDS_MAX = 10.0  # for one of the pool's sessions to be free
LOCK_WAIT_SECONDS = 8.0  # for other nodes' batches, which take milliseconds; less than the above, so that it is named

_SETTINGS = {
    "search_path": f"{SCHEMA}, pg_temp",
    "lock_timeout": f"{LOCK_WAIT_SECONDS:.0f}s",
    # A node that dies between two statements, or loses its network, must not block the commits of the others.
    "idle_in_transaction_session_timeout": "5s",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    # Every hot statement has an index: a plan made while a table was small must not walk it when it has grown.
    "enable_seqscan": "off",
    "jit": "off",
}

# Off and local are too weak; on, remote_write and remote_apply are what the server's owner wants.
_DURABLE = """
    SELECT set_config('synchronous_commit', 'on', false)
    WHERE current_setting('synchronous_commit') IN ('off', 'local')"""

# InternalClientError: a statement on a session whose end the server has announced, before its line is closed.
DRIVER_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)
"""Every error that a statement or a connection can raise."""

_LOST = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)


def session_arguments(url: DatabaseUrl, role: str) -> dict[str, Any]:
    """What asyncpg's `connect` and `create_pool` take; `role` appears in pg_stat_activity."""
    return {
        "dsn": url.dsn,
        "timeout": CONNECT_SECONDS_MAX,
        "command_timeout": STATEMENT_SECONDS_MAX,
        "server_settings": _SETTINGS | {"application_name": f"fleet {role}"},
    }


async def connect(url: DatabaseUrl, role: str) -> Session:
    """A checked session. Raises: NotFound, Invalid, Unavailable: the message says what is wrong."""
    with reported(partial(cannot_open, url)):
        session = await asyncpg.connect(**session_arguments(url, role))
    try:
        await prepare(session)
    except BaseException:
        session.terminate()
        raise
    return session


async def prepare(session: Session) -> None:
    """Check a new session and set it up. Raises: Invalid: the server does not meet our requirements."""
    found = await session.fetchrow(
        "SELECT current_setting('server_version_num')::int AS version, current_setting('server_encoding') AS encoding"
    )
    if found["version"] < VERSION_MIN:
        raise Invalid("postgres-too-old", f"PostgreSQL {found['version'] // 10_000} is too old; 15 or newer is needed.")
    if found["encoding"] != "UTF8":
        raise Invalid(
            "postgres-encoding",
            f"The database's encoding is {found['encoding']}, which cannot hold every name.",
            "Make one with: createdb --encoding=UTF8 --template=template0 NAME",
        )
    await session.execute(_DURABLE)


def connection_lost(error: BaseException) -> bool:
    """Whether `error` means that the session was lost, with everything that was not committed."""
    return isinstance(error, _LOST)


def cannot_open(url: DatabaseUrl, error: Exception) -> FleetError:
    """The error for a session that could not be opened."""
    match error:
        case asyncpg.InvalidCatalogNameError():
            return NotFound(
                "no-database", f"There is no database at {url.shown}.", "Make it with: createdb --owner=USER NAME"
            )
        case asyncpg.InvalidAuthorizationSpecificationError():
            return Unavailable(
                "database-login",
                f"The database {url.shown} refused the login: {first_line(error)}.",
                "Give the password in PGPASSWORD, in ~/.pgpass, or in a file for --database-file.",
            )
        case _:
            return Unavailable(
                "registry-unavailable",
                f"The database {url.shown} cannot be reached: {first_line(error)}.",
                "Check that it runs and that the address is right.",
            )


def unavailable(error: BaseException) -> FleetError:
    """The FleetError for a database error; a FleetError is returned as it is."""
    match error:
        case FleetError():
            return error
        case asyncpg.LockNotAvailableError():
            return Unavailable(
                "registry-busy",
                f"Another program has held a lock in the database for over {LOCK_WAIT_SECONDS:.0f} s.",
                "Nothing was done. See pg_locks and pg_stat_activity.",
            )
        case asyncpg.CharacterNotInRepertoireError() | asyncpg.DataError():
            return Invalid("bad-value", "A value cannot be stored in the registry.", "Look for NUL characters.")
        case _:
            return Unavailable(
                "registry-unavailable",
                f"The registry could not be read or written: {first_line(error)}.",
                "Nothing was done. Look at the database server and at its log.",
            )


def first_line(error: BaseException) -> str:
    """The error's message without further lines, which may hold values of rows."""
    if isinstance(error, TimeoutError):
        return "it did not answer in time"
    text = str(error).partition("\n")[0].rstrip(". ")
    return text or type(error).__name__
