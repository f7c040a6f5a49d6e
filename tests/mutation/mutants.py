"""Mutants of one Python source: each is the source with one small change that its tests should notice.

Left alone, since no test is meant to hold them: types, docstrings, `__repr__`, what is logged, and the
sentences of errors.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass

COMPARE: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult,
    ast.Mod: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitAnd,
}
LOGGING = frozenset({"debug", "info", "warning", "error", "exception", "critical", "log", "log_event"})
PASS = ast.Pass()


@dataclass(frozen=True)
class Mutant:
    line: int
    change: str
    """What was and what is, on one line."""
    source: bytes


def mutants_of(source: bytes) -> list[Mutant]:
    """Every mutant of `source` that compiles, in the order of its lines."""
    tree = ast.parse(source)
    found = {}
    for node, instead in _changes(tree):
        mutant = _with(source, node, instead)
        try:
            compile(mutant.source, "mutant", "exec")
        except (SyntaxError, ValueError):
            continue
        found[mutant.source] = mutant
    return sorted(found.values(), key=lambda each: (each.line, each.change))


def _changes(tree: ast.Module) -> Iterator[tuple[ast.expr | ast.stmt, ast.expr | ast.stmt]]:
    """Pairs of a node and what stands in its place."""
    for node in _within(tree):
        if isinstance(node, ast.expr):
            yield from ((node, instead) for instead in _expressions(node))
        for test in _conditions(node):
            yield test, _negated(test)
        match node:
            case ast.Compare(ops=[*_, ast.In() | ast.NotIn()], comparators=[*_, ast.Tuple() as choices]):
                yield from _shorter(choices)
            case ast.Assign(value=ast.Tuple() as listed) | ast.AnnAssign(value=ast.Tuple() as listed):
                yield from _shorter(listed)
            case ast.List() | ast.Set() | ast.Dict():
                yield from _shorter(node)
            case ast.Return(value=ast.expr() as value) if not _is_none(value):
                yield value, ast.Constant(None)
            case ast.Raise() | ast.AugAssign() | ast.Delete() | ast.Assert() | ast.Continue() | ast.Break():
                yield node, PASS
            case ast.Expr(value=ast.Call() | ast.Await()):
                yield node, PASS
            case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
                yield node, PASS


def _expressions(node: ast.expr) -> Iterator[ast.expr]:
    match node:
        case ast.Compare(left, ops, comparators):
            for at, operator in enumerate(ops):
                others = [*ops[:at], COMPARE[type(operator)](), *ops[at + 1 :]]
                yield ast.Compare(left, others, comparators)
        case ast.BoolOp(operator, values):
            yield ast.BoolOp(ast.And() if isinstance(operator, ast.Or) else ast.Or(), values)
            for at in range(len(values)):
                rest = [*values[:at], *values[at + 1 :]]
                yield rest[0] if len(rest) == 1 else ast.BoolOp(operator, rest)
        case ast.BinOp(left, operator, right) if type(operator) in ARITHMETIC:
            yield ast.BinOp(left, ARITHMETIC[type(operator)](), right)
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield ast.Constant(value + 1)
        case ast.Constant(value=float(value)):
            yield ast.Constant(value + 0.5)
        case ast.Constant(value=str(value)) if " " not in value:
            yield ast.Constant(value + "X")
        case ast.Constant(value=bytes(value)):
            yield ast.Constant(value + b"X")


def _conditions(node: ast.AST) -> list[ast.expr]:
    """The expressions by which `node` decides, where no other mutant negates them already."""
    match node:
        case ast.If(test=test) | ast.While(test=test) | ast.IfExp(test=test):
            tests = [test]
        case ast.comprehension(ifs=tests):
            pass
        case _:
            return []
    return [test for test in tests if not isinstance(test, ast.Constant) and not _is_equality(test)]


def _is_equality(test: ast.expr) -> bool:
    """Whether changing its operator negates it."""
    negatable = ast.Eq | ast.NotEq | ast.Is | ast.IsNot | ast.In | ast.NotIn
    return isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], negatable)


def _shorter(node: ast.expr) -> Iterator[tuple[ast.expr, ast.expr]]:
    """The same display without one of its elements."""
    if isinstance(node, ast.Dict):
        for at in range(len(node.keys)):
            yield node, ast.Dict([*node.keys[:at], *node.keys[at + 1 :]], [*node.values[:at], *node.values[at + 1 :]])
    elif isinstance(node, ast.Set) and len(node.elts) > 1:
        yield from ((node, ast.Set(rest)) for rest in _without_one(node.elts))
    elif isinstance(node, ast.Tuple | ast.List) and len(node.elts) > 1 and isinstance(node.ctx, ast.Load):
        yield from ((node, type(node)(rest, ast.Load())) for rest in _without_one(node.elts))


def _without_one(elements: list[ast.expr]) -> Iterator[list[ast.expr]]:
    return ([*elements[:at], *elements[at + 1 :]] for at in range(len(elements)))


def _negated(test: ast.expr) -> ast.expr:
    return (
        test.operand if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not) else ast.UnaryOp(ast.Not(), test)
    )


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _within(node: ast.AST) -> Iterator[ast.AST]:
    """Every node that may be changed, below `node` and itself."""
    yield node
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "cast":
        yield from (each for value in node.args[1:] if not _is_left_alone(value) for each in _within(value))
        return
    for name, below in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "bases", "type_params"):
            continue
        for child in below if isinstance(below, list) else [below]:
            if isinstance(child, ast.AST) and not _is_left_alone(child):
                yield from _within(child)


def _is_left_alone(node: ast.AST) -> bool:
    match node:
        case ast.JoinedStr():  # its parts have no place of their own before Python 3.12
            return True
        case ast.Expr(value=ast.Constant()):  # a docstring
            return True
        case ast.Expr(value=ast.Call(func=ast.Attribute(attr=name) | ast.Name(id=name))) if name in LOGGING:
            return True
        case ast.Assign(value=ast.Call(func=ast.Attribute(attr="getLogger"))):
            return True
        case ast.FunctionDef(name="__repr__"):
            return True
        case ast.Assign(targets=[ast.Name(id="__all__" | "__slots__")]) | ast.Import() | ast.ImportFrom():
            return True
        case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
            return True
    return False


def _with(source: bytes, node: ast.expr | ast.stmt, instead: ast.expr | ast.stmt) -> Mutant:
    """`source` with the text of `node` exchanged; every other line stays where it is."""
    lines = source.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    begin = starts[node.lineno - 1] + node.col_offset
    end = starts[(node.end_lineno or node.lineno) - 1] + (node.end_col_offset or 0)
    was = " ".join(source[begin:end].decode().split())
    text = ast.unparse(ast.fix_missing_locations(instead))
    written = f"({text})" if isinstance(instead, ast.expr) and not isinstance(instead, ast.Constant) else text
    return Mutant(node.lineno, f"{was} -> {text}", source[:begin] + written.encode() + source[end:])
