"""The statements of writes as texts: their translation for SQLite, and the Conflicts that they name."""

import re

import pytest

from fleet.domain.device import DeviceState
from fleet.storage.postgres.functions import ALL, NUMBER_OF
from fleet.storage.statement import Statement, for_sqlite
from fleet.storage.statements import STATEMENTS, filled


def parameters_of(statement: Statement) -> list[int]:
    return sorted({int(number) for number in re.findall(r"\$(\d+)::(?:text|bigint|bytea)\b", statement.sql)})


def test_placeholders_lose_their_types_and_rows_their_locks() -> None:
    sql = "SELECT 1 FROM anchor WHERE name = $1::text AND created_at < $12::bigint FOR SHARE"
    assert for_sqlite(sql) == "SELECT 1 FROM anchor WHERE name = ?1 AND created_at < ?12"
    assert for_sqlite("SELECT 1 FROM audit WHERE seq > $1 LIMIT $2") == "SELECT 1 FROM audit WHERE seq > ?1 LIMIT ?2"
    assert for_sqlite("SELECT 1 WHERE a = '$1 FOR UPDATE ''$2' AND b = $2 FOR UPDATE") == (
        "SELECT 1 WHERE a = '$1 FOR UPDATE ''$2' AND b = ?2"
    )
    quoted = for_sqlite("""SELECT "$1" FROM t WHERE a = '' AND b = $1::text""")
    assert quoted == """SELECT "$1" FROM t WHERE a = '' AND b = ?1"""


def test_states_fill_their_list() -> None:
    assert filled({DeviceState.SUSPENDED, DeviceState.ACTIVE}, 3) == ("active", "suspended", "suspended")
    assert filled((), 2) == ("", "")


@pytest.mark.parametrize("name", ALL)
def test_every_parameter_is_typed_and_none_is_left_out(name: str) -> None:
    """A function of PostgreSQL finds parameters by their types; SQLite counts them."""
    statement = ALL[name]
    numbers = parameters_of(statement)
    assert numbers == list(range(1, len(numbers) + 1))
    assert sorted({int(number) for number in re.findall(r"\$(\d+)", statement.sql)}) == numbers


@pytest.mark.parametrize("name", STATEMENTS)
def test_sqlite_gets_nothing_of_postgresql(name: str) -> None:
    assert not re.search(r"\$|::|FOR (UPDATE|SHARE)", STATEMENTS[name].sqlite)


@pytest.mark.parametrize("name", [name for name, each in ALL.items() if each.code or each.message or each.advice])
def test_a_conflict_names_parameters_that_its_statement_has(name: str) -> None:
    statement = ALL[name]
    conflict = statement.conflict(tuple(f"<{number}>" for number in parameters_of(statement)))
    assert conflict.code
    assert re.fullmatch(r"[A-Z][^{}]+\.|<1>[^{}]+\.", conflict.message)


def test_each_statement_has_a_number_of_its_own() -> None:
    assert sorted(NUMBER_OF.values()) == list(range(len(ALL)))
