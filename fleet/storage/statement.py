"""One SQL statement, for both engines.

A parameter is written as PostgreSQL has it, with its type: `$1::text`, `::bigint` or `::bytea`. `Statement.sqlite` is
the same text for SQLite, where parameters carry no type and where one writer at a time needs no row locks.
"""

import re

from msgspec import Struct
from msgspec.structs import force_setattr

from fleet.domain.errors import Conflict
from fleet.storage.mapping import Row

_POSITION = re.compile(r"position\((\$\d+) IN ([\w.]+)\)")
_TOKEN = re.compile(
    r"""(?P<quoted>'(?:[^']|'')*'|"[^"]*")|\$(?P<parameter>\d+)(?:::(?:text|bigint|bytea))?| FOR (?:UPDATE|SHARE)\b"""
)


def for_sqlite(sql: str) -> str:
    """`sql` with SQLite's placeholders and its `instr`, and without row locks. Literals and quoted names stay as they
    are.
    """
    sql = _POSITION.sub(r"instr(\2, \1)", sql)
    return _TOKEN.sub(lambda token: token["quoted"] or (f"?{token['parameter']}" if token["parameter"] else ""), sql)


class Statement(Struct, frozen=True, eq=False):
    """One statement, and the Conflict that it means when it finds or changes no row.

    A statement checks its own condition: there is no gap between check and write.
    """

    sql: str
    code: str = ""
    """Of the Conflict; empty: finding no row is fine."""
    message: str = ""
    """May name the statement's parameters: {0} is `$1`."""
    advice: str = ""
    sqlite: str = ""
    """The same text for SQLite; follows from `sql`."""
    is_query: bool = False
    """Follows from `sql`, too."""

    def __post_init__(self) -> None:
        force_setattr(self, "sqlite", for_sqlite(self.sql))
        force_setattr(self, "is_query", self.sql.lstrip().startswith("SELECT"))

    def conflict(self, parameters: Row) -> Conflict:
        """What it means that this statement, with these parameters, has found no row."""
        return Conflict(self.code, self.message.format(*parameters), self.advice)
