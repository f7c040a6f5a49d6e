"""Error codes have one source: each code that the source raises is in the table with its status, and no other is."""

import ast
from collections import defaultdict
from functools import cache
from http import HTTPStatus
from pathlib import Path

from fleet.domain import errors
from fleet.domain.approval import RequestState
from fleet.domain.credential import CredentialState
from fleet.domain.device import DeviceState
from fleet.domain.error_codes import CODES, ERROR_CODES, TABLE
from fleet.domain.errors_page import errors_page
from fleet.servers.refusals import HTTP_STATUS, WIRE_CODES

FLEET = Path(__file__).parents[2] / "fleet"
STATUS = {kind.__name__: status for kind, status in HTTP_STATUS.items() if issubclass(kind, errors.FleetError)}

# Codes made at run time, each of a prefix and a state or a kind of record.
COMPOSED = {
    "device-": [state.value for state in DeviceState if state is not DeviceState.ACTIVE],
    "certificate-": [CredentialState.REVOKED.value, CredentialState.SUPERSEDED.value],
    "no-such-": ["anchor", "claim", "device", "model", "operator", "request", "session", "station", "tenant", "token"],
    "request-": [RequestState.APPROVED.value, RequestState.DENIED.value, RequestState.ISSUED.value],
}


@cache
def trees() -> dict[Path, ast.Module]:
    """The source of each file; read by a test, not by every process that collects."""
    return {file: ast.parse(file.read_text()) for file in FLEET.rglob("*.py")}


def constants(tree: ast.AST) -> dict[str, ast.expr]:
    return {
        target.id: node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def text_of(node: ast.expr | None, names: dict[str, ast.expr]) -> str | None:
    if isinstance(node, ast.Name):
        node = names.get(node.id)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


@cache
def raised_codes() -> dict[str, set[int]]:
    """Codes in the source, with the statuses of the errors that carry them."""
    found: dict[str, set[int]] = defaultdict(set)
    for file, tree in trees().items():
        if "wire" in file.parts:
            continue  # its errors carry no codes
        names = constants(tree)
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            function = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            if function in STATUS and (code := text_of(node.args[0], names)):
                found[code].add(STATUS[function])
            elif function == "HttpRefused" and len(node.args) > 1 and (code := text_of(node.args[1], names)):
                status = node.args[0]
                found[code] |= {int(str(status.value))} if isinstance(status, ast.Constant) else set()
    return found


def test_the_source_is_searched() -> None:
    assert len(raised_codes()) > 150
    assert raised_codes()["token-expired"] == {403}


def test_each_code_is_in_the_table_with_its_statuses() -> None:
    assert raised_codes().keys() <= ERROR_CODES.keys()
    told = {code: set(ERROR_CODES[code].statuses) for code in raised_codes()}
    assert {code: statuses for code, statuses in raised_codes().items() if not statuses <= told[code]} == {}


def test_composed_and_wire_codes_are_in_the_table() -> None:
    wanted = {prefix + state for prefix, states in COMPOSED.items() for state in states} | set(WIRE_CODES.values())
    assert wanted <= set(ERROR_CODES)


def test_no_code_stands_twice() -> None:
    assert len(ERROR_CODES) == len(CODES)


def test_no_code_in_the_table_is_unused() -> None:
    words = {
        node.value
        for file, tree in trees().items()
        if file.name != "error_codes.py"
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    composed = {prefix + state for prefix, states in COMPOSED.items() for state in states}
    assert set(ERROR_CODES) - words - composed == set()


def test_each_says_what_it_means_and_what_to_do() -> None:
    for each in ERROR_CODES.values():
        assert each.meaning.endswith("."), each.code
        assert each.advice.endswith("."), each.code
        assert all(HTTPStatus(status) for status in each.statuses), each.code
        assert "|" not in each.meaning + each.advice, each.code


def test_the_page_is_the_table() -> None:
    assert (FLEET / "ERRORS.md").read_text() == errors_page(TABLE)
