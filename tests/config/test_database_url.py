"""A database's URL is read strictly, and shown without its password."""

import pytest

from fleet.config.addresses import Database, parse_database
from fleet.config.database_url import parse_database_url

SOUND = [
    "postgresql://fleet@db.example/fleet",
    "postgres://db:5433/fleet",
    "postgresql://fleet@[::1]:5432/fleet?sslmode=verify-full&sslrootcert=/etc/ca.pem",
    "postgresql://fleet@/fleet?host=/run/postgresql",
    "postgresql://fleet@a:1,b:2/fleet?target_session_attrs=read-write",
    "postgresql://h?dbname=fleet",
]
SECRET = "sesame"


@pytest.mark.parametrize("text", SOUND)
def test_one_without_a_password_is_shown_as_it_is(text: str) -> None:
    url = parse_database_url(text)
    assert (url.dsn, url.shown, str(url), url.has_password) == (text, text, text, False)
    assert parse_database(text) == Database(url=text)
    assert str(parse_database(text)) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"postgresql://u:{SECRET}@h/d", "postgresql://u@h/d"),
        (f"postgresql://u:{SECRET}@x@h/d", "postgresql://u@h/d"),
        (f"postgresql://u:@h/d?password={SECRET}&sslmode=require", "postgresql://u@h/d?sslmode=require"),
        (f"postgresql://h/d?password={SECRET}", "postgresql://h/d"),
    ],
)
def test_a_password_is_kept_and_never_shown(text: str, shown: str) -> None:
    url = parse_database_url(text)
    assert url.has_password
    assert url.dsn == text
    assert str(url) == shown
    assert SECRET not in repr(url)
    with pytest.raises(ValueError, match="PGPASSWORD") as caught:
        parse_database(text)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        SECRET,
        f"mysql://u:{SECRET}@h/d",
        f"postgresql:u:{SECRET}@h/d",
        f"postgresql://u:{SECRET}@h",
        f"postgresql://u:{SECRET}@h/d#x",
        f"postgresql://u:{SECRET}@h/d?sslmod=require",
        f"postgresql://u:{SECRET}@h/d?synchronous_commit=off",
        f"postgresql://u:{SECRET}@h/d?options=-c%20fsync=off",
        f"postgresql://u:{SECRET}@h/d?sslmode",
        f"postgresql://u:{SECRET} @h/d",
        f"postgresql://u:{SECRET}\n@h/d",
        f"postgresql://u:{SECRET}@[h/d",
        f"postgresql://u:{SECRET}/x@h/d",
        f"postgresql://u:1/{SECRET}@h/d",
        f"postgresql://u:x?{SECRET}=@h/d",
        f"postgresql://u:1?{SECRET}=@h/d",
        f"postgresql://u:{SECRET}@h/{'d' * 5000}",
    ],
)
def test_what_is_none_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_database_url(text)
    assert SECRET not in str(caught.value)


def test_a_parameter_nearly_spelled_right_is_named() -> None:
    with pytest.raises(ValueError, match="did you mean 'sslmode'"):
        parse_database_url("postgresql://h/d?sslmod=require")


def test_sqlite_and_a_file() -> None:
    assert parse_database("sqlite") == Database()
    assert str(parse_database("file:/etc/fleet/db")) == "file:/etc/fleet/db"
    for text in ("file:", "SQLite", "registry.db"):
        with pytest.raises(ValueError):
            parse_database(text)
