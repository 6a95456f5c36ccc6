"""The error for what a user gave and cannot be used."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

__all__ = ["InputError", "check_known"]


class InputError(ValueError):
    """Something a user gave cannot be used. The message is one sentence for the user, with the remedy."""


def check_known(kind: str, name: str, existing: Sequence[str], others: str = "", *, of: str = "") -> None:
    """Raise InputError where no `kind` has this name; the message suggests the nearest name that exists.

    `others` says in words what else there is, and `of`, as " of a tree", of what it is a kind.

    >>> check_known("fruit", "aple", ["apple", "pear"])
    Traceback (most recent call last):
    ...
    experiments.base.errors.InputError: There is no fruit 'aple'; the nearest to it is apple: there are apple, pear.
    """
    if name in existing:
        return
    nearest = difflib.get_close_matches(name, existing, n=1)
    hint = f"; the nearest to it is {nearest[0]}" if nearest else ""
    verb = "there are" if len(existing) > 1 else "there is"
    more = f"; {others}" if others else ""
    raise InputError(f"There is no {kind} {name!r}{of}{hint}: {verb} {', '.join(existing)}{more}.")
