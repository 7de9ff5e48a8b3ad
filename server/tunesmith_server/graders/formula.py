"""Owns the formula of a multi grader: arithmetic over names, read by a walker of its own and never executed.

It must not know where the values come from. Python's parser reads the text; everything that is not in the tables below
is refused, and all numbers are floats, so no formula takes long or much memory.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Collection, Mapping, Sequence

MAX_LENGTH = 1000
_MAX_DEPTH = 50

_BINARY: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: math.pow,
}
_UNARY: dict[type[ast.unaryop], Callable[[float], float]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}
_ONE_ARGUMENT: dict[str, Callable[[float], float]] = {
    "abs": abs,
    "floor": math.floor,
    "ceil": math.ceil,
    "exp": math.exp,
    "sqrt": math.sqrt,
    "log": math.log,
}
_SOME_ARGUMENTS: dict[str, Callable[[Sequence[float]], float]] = {"min": min, "max": max}


class FormulaError(Exception):
    """The formula cannot be read, or has no value for these numbers; the text says why."""


def evaluate(formula: str, values: Mapping[str, float]) -> float:
    """The formula's value, a finite number; raises FormulaError."""
    try:
        result = _value(_parse(formula), values, 0)
    except (ArithmeticError, ValueError) as error:
        raise FormulaError(f"the formula has no value here ({error})") from error
    return _finite(result)


def check(formula: str, names: Collection[str]) -> None:
    """Passes when the formula can be read and uses no other names; raises FormulaError."""
    tree = _parse(formula)
    try:
        # Only what is wrong with its form counts: these numbers are not the ones that it will get.
        _value(tree, dict.fromkeys(names, 1.0), 0)
    except (ArithmeticError, ValueError):
        return


def _parse(formula: str) -> ast.expr:
    if len(formula) > MAX_LENGTH:
        raise FormulaError(f"the formula may have at most {MAX_LENGTH} characters")
    try:
        return ast.parse(formula.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise FormulaError("the formula is not an arithmetic expression") from error


def _value(node: ast.expr, values: Mapping[str, float], depth: int) -> float:
    if depth > _MAX_DEPTH:
        raise FormulaError(f"the formula nests more than {_MAX_DEPTH} levels")
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return _finite(float(number))
        case ast.Name(id=name):
            if name not in values:
                raise FormulaError(f"the formula uses {name!r}, which is no grader's key")
            return float(values[name])
        case ast.UnaryOp(op=sign, operand=operand) if type(sign) in _UNARY:
            return _UNARY[type(sign)](_value(operand, values, depth + 1))
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _BINARY:
            return _BINARY[type(sign)](_value(left, values, depth + 1), _value(right, values, depth + 1))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
            return _call(name, [_value(argument, values, depth + 1) for argument in arguments])
    raise FormulaError(
        "the formula may hold numbers, graders' keys, + - * / ** and the functions "
        + ", ".join([*_SOME_ARGUMENTS, *_ONE_ARGUMENT])
    )


def _call(name: str, arguments: list[float]) -> float:
    if name in _SOME_ARGUMENTS and arguments:
        return _SOME_ARGUMENTS[name](arguments)
    if name in _ONE_ARGUMENT and len(arguments) == 1:
        return float(_ONE_ARGUMENT[name](arguments[0]))
    raise FormulaError(f"the formula calls {name!r} in a way that is not known")


def _finite(number: float) -> float:
    if not math.isfinite(number):
        raise FormulaError("the formula leaves the range of numbers")
    return number
