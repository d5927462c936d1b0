"""Arithmetic from text, exactly and safely: + - * / and brackets over whole numbers.

Nothing is ever executed.
"""

from __future__ import annotations

import ast
import operator
import re
from fractions import Fraction

LONGEST = 200
_ALLOWED = re.compile(r"[0-9+\-*/() ]+")
_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


class NotArithmetic(ValueError):
    """The text is not an expression of this kind, or has no value."""


def parse_expression(text: str) -> ast.expr:
    """The syntax tree of an expression of at most 200 characters.

    Powers, whole division, names and decimals are NotArithmetic.
    """
    if len(text) > LONGEST:
        raise NotArithmetic(f"longer than {LONGEST} characters")
    if not _ALLOWED.fullmatch(text):
        raise NotArithmetic("only whole numbers, + - * / and brackets are allowed")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise NotArithmetic("not a well-formed expression") from None
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp | ast.UnaryOp) and type(node.op) not in (
            *_OPERATORS,
            ast.USub,
        ):
            raise NotArithmetic("only + - * / are allowed")
        if isinstance(node, ast.Call | ast.Tuple):
            raise NotArithmetic("an operator is missing")
    return tree


def evaluate_tree(tree: ast.expr) -> Fraction:
    """The exact value of a parsed expression; division by zero is NotArithmetic."""
    if isinstance(tree, ast.Constant):
        return Fraction(tree.value)  # type: ignore[arg-type]
    if isinstance(tree, ast.UnaryOp):
        return -evaluate_tree(tree.operand)
    if not isinstance(tree, ast.BinOp):
        raise NotArithmetic("not a well-formed expression")
    left, right = evaluate_tree(tree.left), evaluate_tree(tree.right)
    if isinstance(tree.op, ast.Div) and right == 0:
        raise NotArithmetic("division by zero")
    return _OPERATORS[type(tree.op)](left, right)


def numbers_in_tree(tree: ast.expr) -> list[int]:
    """The numbers written in an expression, smallest first, as often as they occur."""
    return sorted(node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))  # type: ignore[misc]


def evaluate(text: str) -> Fraction:
    """The exact value of an expression: evaluate("24/6 - 87 + 96") == 13. Raises NotArithmetic."""
    return evaluate_tree(parse_expression(text))
