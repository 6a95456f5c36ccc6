"""Networks and data of one's own: functions in modules that Python finds, named "module:function", and .npz files."""

from __future__ import annotations

import importlib
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.base.errors import InputError
from experiments.base.wording import first_line

__all__ = ["OTHER_DATA", "called", "function_of", "is_file", "is_function", "look_beside", "short_name"]


OTHER_DATA = (
    "others of TFDS, by name or name/config, are there once they are prepared in the data directory, and one's own as "
    '"module:function" or as a .npz file'
)
"""What there is beside the named data sets, in words."""


def is_function(name: str) -> bool:
    """Whether a name is that of a function, "module:function"."""
    return ":" in name


def is_file(name: str) -> bool:
    """Whether a name is that of a file of arrays."""
    return name.endswith(".npz")


def short_name(name: str) -> str:
    """The name of a data set in results, tables and file names: without folders, and of letters, digits, _ and dots.

    >>> short_name("digits"), short_name("emnist/letters"), short_name("mine:cells"), short_name("../old data/a-b.npz")
    ('digits', 'emnist_letters', 'mine.cells', 'a_b.npz')
    """
    whole = Path(name).name if is_file(name) else name.replace(":", ".")
    # no dash: in the names of files it stands between the data set and the model
    return re.sub(r"[^\w.]", "_", whole)


def look_beside(file: Path) -> None:
    """Let modules be found first in the folder of this file, as Python does for a script, until the process ends."""
    folder = str(file.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)


def function_of(kind: str, name: str) -> Callable[..., Any]:
    """The function "module:function", which is a `kind`, as "network". Raises InputError where there is none."""
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise InputError(f'The {kind} {name} cannot be found: write it as "module:function".')
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise InputError(
            f"The {kind} {name} cannot be found: {str(error).rstrip('.')}; modules are looked for beside the config, "
            "in the current folder and where packages are installed."
        ) from error
    except Exception as error:  # whatever the user's module raises
        raise InputError(f"The {kind} {name} cannot be imported: {_described(error)}.") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        where = getattr(module, "__file__", None) or module_name
        raise InputError(f"The {kind} {name} cannot be found: {where} has no function {function_name}.")
    return function


def called(kind: str, name: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What a function of one's own gives. Raises InputError, with the user's line, where it raises anything."""
    try:
        return function(*arguments, **options)
    except InputError:
        raise
    except Exception as error:  # whatever the user's function raises
        raise InputError(f"The {kind} {name} cannot be made: {_described(error)}.") from error


def _described(error: Exception) -> str:
    """The first line of an error in one's own code, and where it was raised."""
    if isinstance(error, SyntaxError):  # whose words name the file without its folder
        return f"{type(error).__name__}: {error.msg} ({error.filename}:{error.lineno})"
    return f"{type(error).__name__}: {first_line(error)} ({_place(error)})"


def _place(error: Exception) -> str:
    """The file and the line, the innermost one outside of installed packages, of Python and of the experiments."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = Path(__file__).parents[1]
    own = [frame for frame in frames if "-packages" not in frame.filename and "<frozen" not in frame.filename]
    own = [frame for frame in own if ours not in Path(frame.filename).parents] or own or list(frames)
    return f"{own[-1].filename}:{own[-1].lineno}"
