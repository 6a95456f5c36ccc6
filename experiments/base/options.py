"""Options of the command line that a command does not have, in one sentence."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from experiments.base.errors import InputError
from experiments.base.wording import enumerated

__all__ = ["check_options"]

_OF_ALL = ("--help", "-h")


def check_options(arguments: Sequence[str], known: Mapping[str, Sequence[str]]) -> None:
    """Raise InputError at the first option that the command, the first of the arguments, does not have.

    `known` has the options of each command, as "data_dir". What is no command is left to others.

    >>> check_options(["draw", "--sizs=3"], {"draw": ["size"], "erase": ["all"]})
    Traceback (most recent call last):
    ...
    experiments.base.errors.InputError: draw has no option --sizs; the nearest to it is --size: it has --size, --help.
    >>> check_options(["draw", "--all"], {"draw": ["size"], "erase": ["all"]})
    Traceback (most recent call last):
    ...
    experiments.base.errors.InputError: draw has no option --all, which is one of erase: it has --size, --help.
    """
    command = arguments[0] if arguments else ""
    if command not in known:
        return
    names = {each: [f"--{name.replace('_', '-')}" for name in options] for each, options in known.items()}
    for argument in arguments[1:]:
        option = argument.partition("=")[0].replace("_", "-")
        positive = option.replace("--no-", "--", 1)
        if not option.startswith("--") or {option, positive} & {*names[command], *_OF_ALL}:
            continue
        listed = f"{', '.join([*names[command], _OF_ALL[0]])}."
        others = [each for each, options in names.items() if {option, positive} & {*options}]
        if others:
            raise InputError(f"{command} has no option {option}, which is one of {enumerated(others)}: it has {listed}")
        nearest = difflib.get_close_matches(option, names[command], n=1)
        hint = f"; the nearest to it is {nearest[0]}" if nearest else ""
        raise InputError(f"{command} has no option {option}{hint}: it has {listed}")
