"""Single changes to a module, each of which some test should notice.

Only the changed piece of text is replaced, so every other line keeps its number.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Change", "changed", "changes"]

_FLIPPED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_SWAPPED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
}  # fmt: skip
_LOGS = ("log", "_log", "logger", "_logger", "warnings")  # what is said there is prose
_NO_LOCK = "__import__('contextlib').nullcontext()"


@dataclass(frozen=True)
class Change:
    """The bytes [start, end) of a module's source become `after`."""

    kind: str
    line: int
    before: str
    after: str
    start: int
    end: int


def changed(source: bytes, change: Change) -> bytes:
    """The module with one change."""
    return source[: change.start] + change.after.encode() + source[change.end :]


def changes(source: bytes) -> list[Change]:
    """All that this file knows to change in a module, in the order of its lines."""
    lines = source.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    found = []
    for kind, node, after in _replacements(ast.parse(source)):
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start = starts[node.lineno - 1] + node.col_offset
        end = starts[node.end_lineno - 1] + node.end_col_offset
        found.append(Change(kind, node.lineno, source[start:end].decode(), after, start, end))
    return sorted(found, key=lambda change: (change.start, change.end, change.kind))


def _replacements(tree: ast.Module) -> Iterator[tuple[str, ast.expr | ast.stmt, str]]:
    """Kind, node and new text; f-strings are left alone, their parts have no place of their own in 3.11."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.JoinedStr):
            continue
        yield from _of(node)
        waiting.extend(ast.iter_child_nodes(node))


def _of(node: ast.AST) -> Iterator[tuple[str, ast.expr | ast.stmt, str]]:
    match node:
        case ast.Compare(left, [operator, *others], comparators):
            yield (
                "comparison",
                node,
                _text(ast.Compare(left, [_FLIPPED[type(operator)](), *others], comparators)),
            )
        case ast.BoolOp(operator, values):
            yield (
                "and/or",
                node,
                _text(ast.BoolOp(ast.Or() if isinstance(operator, ast.And) else ast.And(), values)),
            )
        case ast.BinOp(left, operator, right) if type(operator) in _SWAPPED:
            yield "arithmetic", node, _text(ast.BinOp(left, _SWAPPED[type(operator)](), right))
        case ast.Constant(bool() | int() | float() as value):
            yield "constant", node, repr(_other(value))
        case ast.If(test) | ast.While(test) | ast.IfExp(test) if not isinstance(
            test, ast.Compare | ast.BoolOp
        ):
            yield "condition", test, _text(ast.UnaryOp(ast.Not(), test))
        case ast.Expr(ast.Call() as call) if not _logs(call):
            yield "statement", node, "pass"
        case ast.Raise() | ast.AugAssign() | ast.Delete():
            yield "statement", node, "pass"
        case ast.With(items) | ast.AsyncWith(items):
            yield from (("lock", one.context_expr, _NO_LOCK) for one in items if one.optional_vars is None)
        case ast.keyword(str(), ast.Name() | ast.Attribute() as value):
            yield "argument", value, "None"


def _text(node: ast.expr) -> str:
    return f"({ast.unparse(node)})"


def _other(value: float) -> float:
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int) or value == 0 else value / 2


def _logs(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) in _LOGS
