"""Records as lines of strict JSON: any frozen dataclass of numbers, words, lists and tables.

Measured numbers are written with eight digits. What names a record or decides it keeps every digit: fields of the type
`ExactFloat`, and tables of any JSON values, `dict[str, Any]`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any, TypeVar

__all__ = ["ExactFloat", "decode", "encode"]

ExactFloat = float
"""The type of a field whose number comes back from a line as the very same number."""

_EXACT = ("ExactFloat", "dict[str, Any]")

Record = TypeVar("Record")


def encode(record: Any) -> str:
    """One line of strict JSON, without its newline: NaN is null, and the infinities are "inf" and "-inf".

    >>> @dataclasses.dataclass(frozen=True)
    ... class Point:
    ...     x: float
    ...     near: list[float]
    >>> encode(Point(1.5, [math.nan, -math.inf]))
    '{"x": 1.5, "near": [null, "-inf"]}'
    >>> decode(encode(Point(1.5, [-math.inf])), Point)
    Point(x=1.5, near=[-inf])
    """
    values = {field.name: (str(field.type), getattr(record, field.name)) for field in dataclasses.fields(record)}
    plain = {name: value if kind in _EXACT else _to_json(value) for name, (kind, value) in values.items()}
    return json.dumps(plain, allow_nan=False, ensure_ascii=False)


def decode(line: str, kind: type[Record]) -> Record:
    """The record of one line. Fields that have a default may be absent, as in lines of an older format.

    Raises ValueError where `encode` did not write the line for this kind of record.
    """
    values = json.loads(line)
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    types = {field.name: field.type for field in fields}
    optional = {
        field.name
        for field in fields
        if field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
    }
    if not isinstance(values, dict) or not set(types) - optional <= set(values) <= set(types):
        raise ValueError(f"the line does not hold the fields of a {kind.__name__.lower()}")
    return kind(**{name: _from_json(values[name], str(types[name])) for name in values})


def _to_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_to_json(entry) for entry in value]
    if isinstance(value, dict):
        return {key: _to_json(entry) for key, entry in value.items()}
    if not isinstance(value, float):
        return value
    if math.isnan(value):
        return None
    # eight digits hold a float32 exactly enough to rank, and keep the curves short
    return float(f"{value:.8g}") if math.isfinite(value) else str(value)


def _from_json(value: Any, kind: str) -> Any:
    if kind in ("float", "ExactFloat"):
        return _number(value)
    if kind == "dict[str, Any]" and isinstance(value, dict):
        return value
    if kind == "list[float]" and isinstance(value, list):
        return [_number(entry) for entry in value]
    if kind == "dict[str, float]" and isinstance(value, dict):
        return {key: _number(entry) for key, entry in value.items()}
    if {"str": str, "int": int, "bool": bool}.get(kind) is type(value):
        return value
    raise ValueError(f"{value!r} is not of type {kind}")


def _number(value: Any) -> float:
    if value is None:
        return math.nan
    if value in ("inf", "-inf"):
        return float(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise ValueError(f"{value!r} is not a number")
