import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutation import run as runner
from tests.mutation.mutants import mutants_of

SOURCE = b'''"""Text."""
import logging

LIMIT: int = 4
CHECKS = (len, str)


def admit(size: int, name: str | None) -> bool:
    """Whether it fits."""
    if name is None or size > LIMIT:
        raise ValueError(f"too {size} big")
    logging.info("a line")
    return name in ("a", "b")
'''

HALF_TESTED = """
def limit(size: int) -> int:
    if size > 3:
        return 3
    return size


def unused() -> bool:
    return True
"""


def changes(source: bytes) -> list[str]:
    return [f"{each.line} {each.change}" for each in mutants_of(source)]


def test_what_decides_is_changed() -> None:
    assert changes(SOURCE) == [
        "4 4 -> 5",
        "5 (len, str) -> (len,)",
        "5 (len, str) -> (str,)",
        "10 name is None -> name is not None",
        "10 name is None or size > LIMIT -> name is None",
        "10 name is None or size > LIMIT -> name is None and size > LIMIT",
        "10 name is None or size > LIMIT -> not (name is None or size > LIMIT)",
        "10 name is None or size > LIMIT -> size > LIMIT",
        "10 size > LIMIT -> size >= LIMIT",
        '11 raise ValueError(f"too {size} big") -> pass',
        "13 \"a\" -> 'aX'",
        "13 \"b\" -> 'bX'",
        '13 ("a", "b") -> (\'a\',)',
        '13 ("a", "b") -> (\'b\',)',
        '13 name in ("a", "b") -> None',
        "13 name in (\"a\", \"b\") -> name not in ('a', 'b')",
    ]


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        (b"x = a + b << 2", ["a + b -> a - b", "a + b << 2 -> a + b >> 2", "2 -> 3"]),
        (b"if not a: f()", ["f() -> pass", "not a -> a"]),
        (b"x = {1: 2}", ["1 -> 2", "2 -> 3", "{1: 2} -> {}"]),
        (b"x: tuple[int, ...] = ()", []),
        (b"self.x = y", ["self.x = y -> pass"]),
        (b"x = 'a sentence'", []),
        (b"log = logging.getLogger('fleet')", []),
        (b"log_event(log, 3, 'feed.up')", []),
        (b"def __repr__(self): return f(1)", []),
        (b"x = cast('Transport', y + 1)", ["1 -> 2", "y + 1 -> y - 1"]),
        (b"x = \xc3\xa4 * 2  # \xc3\xb6", ["2 -> 3", "ä * 2 -> ä // 2"]),
    ],
)
def test_each_kind_of_change(statement: bytes, expected: list[str]) -> None:
    assert sorted(each.change for each in mutants_of(statement)) == sorted(expected)


def test_the_other_lines_stay_where_they_are() -> None:
    for mutant in mutants_of(SOURCE):
        before, after = SOURCE.split(b"\n"), mutant.source.split(b"\n")
        assert [at for at, line in enumerate(before, 1) if after[at - 1] != line] == [mutant.line]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "half_tested.py").write_text(HALF_TESTED)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_half.py").write_text(
        "from half_tested import limit\n\n\ndef test_limit():\n    assert [limit(1), limit(3), limit(4)] == [1, 3, 3]\n"
    )
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    return tmp_path


def test_a_line_without_a_test_survives(project: Path) -> None:
    score = runner.run("half_tested.py", ["tests/test_half.py"], jobs=2, project=project)
    assert [(each.line, each.change) for each in score.survived] == [
        (3, "size > 3 -> size >= 3"),  # makes no difference
        (9, "True -> False"),
        (9, "True -> None"),
    ]
    assert score.killed == 5
    assert (project / "half_tested.py").read_text() == HALF_TESTED  # only copies are changed


def test_a_mutant_that_never_ends_is_killed(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "TIMEOUT_MIN_SECONDS", 0.0)
    monkeypatch.setattr(runner, "TIMEOUT_FACTOR", 2)
    (project / "half_tested.py").write_text("def limit(n):\n    while n > 3:\n        n -= 1\n    return n\n")
    score = runner.run("half_tested.py", ["tests/test_half.py"], jobs=2, project=project)
    assert "n -= 1 -> pass" not in {each.change for each in score.survived}
    assert score.killed


def test_tests_that_fail_already_prove_nothing(project: Path) -> None:
    (project / "half_tested.py").write_text("def limit(n):\n    return n\n")
    with pytest.raises(SystemExit, match=r"do not pass on half_tested\.py as it is"):
        runner.run("half_tested.py", ["tests/test_half.py"], jobs=1, project=project)


def test_own_tests_are_those_that_import_the_module() -> None:
    assert runner.own_tests("fleet/domain/renewal.py") == [
        "tests/domain/test_renewal.py",
        "tests/domain/test_distrust.py",
    ]
    assert runner.own_tests("fleet/__main__.py") == []


@pytest.mark.parametrize(
    ("module", "first", "others"),
    [
        ("fleet/tls/transport.py", "tests/tls/test_transport.py", {"tests/tls/test_quickack.py"}),
        ("fleet/tls/peer_identity.py", "tests/tls/test_contexts.py", {"tests/tls/test_session.py"}),
        (
            "fleet/domain/grants/token.py",
            "tests/domain/test_enrollment_checks.py",
            {"tests/domain/test_enrollment_rules.py"},
        ),
    ],
)
def test_own_tests_where_few_or_none_import_it(module: str, first: str, others: set[str]) -> None:
    tests = runner.own_tests(module)
    assert (tests[0], set(tests[1:])) == (first, others)


def test_a_module_that_is_not_there_is_a_wrong_use() -> None:
    words = [sys.executable, "-m", "tests.mutation.run", "fleet.nothing"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=runner.PROJECT, check=False)
    assert (done.returncode, done.stderr.splitlines()[-1].endswith("fleet.nothing: no such module")) == (2, True)
