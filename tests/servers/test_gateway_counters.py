"""Every outcome that the gateway can count is in COUNTERS, and on its page."""

import ast
from collections.abc import Iterator
from pathlib import Path

from fleet.servers import gateway
from fleet.servers.gateway import close_reasons
from fleet.servers.gateway.close_reasons import CloseReason
from fleet.servers.gateway.outcome_log import COUNTERS

ROOM = Path(gateway.__file__).parent
COUNTING = ("record", "_record", "note")


def texts(node: ast.expr) -> list[str] | None:
    """The strings that `node` can be; None: not written out there."""
    match node:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.IfExp(body=one, orelse=other):
            found = texts(one), texts(other)
            return None if None in found else [text for each in found for text in each or ()]
    return None


def counted(source: str) -> Iterator[str]:
    """The counters of the calls in `source` that count an outcome."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        match node.func.attr, [texts(each) for each in node.args[:2]]:
            case "count", [[name]] if "outcomes" in ast.unparse(node.func.value):
                yield name
            case name, [[event], codes] if name in COUNTING:
                yield from (f"{event}.{code}" for code in (codes or ["CODE"]))


def test_calls_are_found() -> None:
    source = (
        'log.record("a", "b" if x else "c", 1.0)\nself.note("d", code)\nself._outcomes.count("e.f")\ntopic.count("/")\n'
    )
    assert list(counted(source)) == ["a.b", "a.c", "d.CODE", "e.f"]


def test_what_is_counted_is_listed() -> None:
    found = {name for path in ROOM.rglob("*.py") for name in counted(path.read_text())}
    reasons = (value for value in vars(close_reasons).values() if isinstance(value, CloseReason))
    found |= {f"{reason.event}.CODE" for reason in reasons}
    assert found == set(COUNTERS)


def test_the_page_lists_it() -> None:
    rows = "".join(f"| `{counter}` | {meaning} |\n" for counter, meaning in COUNTERS.items())
    assert rows in (ROOM / "README.md").read_text()
