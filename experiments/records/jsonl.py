"""Records as lines of strict JSON: any frozen dataclass of numbers, words, lists and tables of numbers."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any, TypeVar

__all__ = ["decode", "encode"]

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
    return json.dumps({key: _plain(value) for key, value in vars(record).items()}, allow_nan=False, ensure_ascii=False)


def decode(line: str, kind: type[Record]) -> Record:
    """The record of one line. Raises ValueError where the line is not one that `encode` wrote of this kind."""
    found = json.loads(line)
    fields = {field.name: field.type for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if not isinstance(found, dict) or set(found) != set(fields):
        raise ValueError(f"the line does not hold the fields of a {kind.__name__.lower()}")
    return kind(**{key: _typed(found[key], str(fields[key])) for key in fields})


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if not isinstance(value, float):
        return value
    if math.isnan(value):
        return None
    # eight digits hold a float32 exactly enough to rank, and keep the curves short
    return float(f"{value:.8g}") if math.isfinite(value) else str(value)


def _typed(value: Any, kind: str) -> Any:
    if kind == "float":
        return _number(value)
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
