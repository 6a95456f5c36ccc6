"""Parts into which the cells of a study are divided, for jobs that do not know of each other."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeVar

from experiments.base.errors import InputError

__all__ = ["WHOLE", "Shard"]

Entry = TypeVar("Entry")


class Shard(NamedTuple):
    """One of so many parts: every `parts`-th cell from cell `number` on, counted from 1."""

    number: int
    parts: int

    def __str__(self) -> str:
        return f"{self.number}/{self.parts}"

    @classmethod
    def read(cls, words: str) -> Shard:
        """The part that is written as 2/8. Raises InputError where it means none.

        >>> Shard.read("2/8")
        Shard(number=2, parts=8)
        """
        parsed = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", words)
        if parsed is None:
            raise InputError(
                f"--shard is {words!r}, but must be the number of a part and how many parts there are, as 2/8."
            )
        number, parts = map(int, parsed.groups())
        if parts == 0:
            raise InputError(f"--shard is {words}, but a study is divided into 1 part or more, as 1/8.")
        if not 1 <= number <= parts:
            raise InputError(
                f"--shard is {words}, but the parts are counted from 1 to {parts}: give 1/{parts} to {parts}/{parts}, "
                f"as Slurm does with --array=1-{parts}."
            )
        return cls(number, parts)

    def of(self, cells: Iterable[Entry]) -> Iterator[Entry]:
        """Those of all cells that belong to this part; neighbours, which cost alike, belong to different ones.

        >>> [list(Shard(number, 2).of("abcde")) for number in (1, 2)]
        [['a', 'c', 'e'], ['b', 'd']]
        """
        return itertools.islice(cells, self.number - 1, None, self.parts)


WHOLE = Shard(1, 1)
"""The whole study."""
