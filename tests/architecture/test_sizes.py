"""Sizes that fit the eye, no loose module on top of fleet/, and no circle among the modules: read from the source."""

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
PACKAGES = ("fleet", "device_agent", "firmware_tools", "hw_bench")
FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 60
PARAMETERS_MAX = 6
FILES = sorted(file.relative_to(PROJECT) for package in PACKAGES for file in (PROJECT / package).rglob("*.py"))
MODULES = {".".join(file.with_suffix("").parts).removesuffix(".__init__"): file for file in FILES}

Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def trees() -> dict[Path, ast.Module]:
    """The source of each file; read by a test, not by every process that collects."""
    return {file: ast.parse((PROJECT / file).read_bytes()) for file in FILES}


def functions() -> Iterator[tuple[Path, Function]]:
    for file, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, Function):
                yield file, node


def is_command(function: Function) -> bool:
    """Whether it is a click callback, or wraps one: its parameters are the options."""
    words = {"command", "group", "option", "argument", "wraps"}
    calls = [each.func for each in function.decorator_list if isinstance(each, ast.Call)]
    return any(isinstance(call, ast.Attribute) and call.attr in words for call in calls)


def test_no_file_is_too_long() -> None:
    lines = {str(file): (PROJECT / file).read_text().count("\n") for file in FILES}
    assert {file: count for file, count in lines.items() if count > FILE_LINES_MAX} == {}


def test_no_function_is_too_long() -> None:
    lengths = {f"{file}: {each.name}": (each.end_lineno or 0) - each.lineno + 1 for file, each in functions()}
    assert {name: count for name, count in lengths.items() if count > FUNCTION_LINES_MAX} == {}


def test_no_function_has_too_many_parameters() -> None:
    found = {}
    for file, each in functions():
        arguments = [*each.args.posonlyargs, *each.args.args, *each.args.kwonlyargs]
        count = sum(argument.arg not in ("self", "cls") for argument in arguments)
        if count > PARAMETERS_MAX and not is_command(each):
            found[f"{file}: {each.name}"] = count
    assert found == {}


def test_no_module_lies_loose_on_top_of_fleet() -> None:
    assert {file.name for file in (PROJECT / "fleet").glob("*.py")} == {"__init__.py", "__main__.py"}


def _run(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes below `node`, without what is there for types alone."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING")):
            yield from _run(child)


def imported(module: str) -> set[str]:
    """The modules of ours that `module` imports, anywhere in it but for types alone."""
    found: set[str] = set()
    for node in _run(trees()[MODULES[module]]):
        if isinstance(node, ast.Import):
            found.update(each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for each in node.names:
                name = f"{node.module}.{each.name}"
                found.add(name if name in MODULES else node.module)
    return {name for name in found if name in MODULES and name != module}


def test_no_modules_import_each_other_in_a_circle() -> None:
    try:
        TopologicalSorter({module: imported(module) for module in MODULES}).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))
