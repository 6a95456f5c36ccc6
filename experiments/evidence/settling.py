"""Part of the section on published numbers: whether the error has settled, and what longer training makes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from experiments.base.wording import enumerated
from experiments.evidence.accounts import ACCOUNTS, CLOSE, less_theirs, our_errors
from experiments.evidence.claims import Claim, Unit, of_all, verdict
from experiments.evidence.kept import Kept
from experiments.evidence.sections import table_of
from experiments.evidence.statistics import Interval, corrected, mean_interval

__all__ = ["claims", "longer", "table", "told"]

_FIRST = "mnist-snip"
_LONGER = ("mnist-settled", "mnist-long")
"""Studies that train as `mnist-snip` does, each longer than the one before."""
_SETTLING = 0.1
"""Training has settled where more of it changes the error by less than this many points."""
_POINTS, _PERCENT = Unit(form="+.2f", word="points"), Unit(form=".2f")


def longer(studies: Mapping[str, Kept]) -> list[Kept]:
    """The kept studies that train longer."""
    found = [studies[name] for name in _LONGER if name in studies]
    return found if _FIRST in studies and _cells([studies[_FIRST], *found]) else []


def claims(studies: Mapping[str, Kept]) -> list[Claim]:
    """That each longer training changes the error by little, and that the longest one gives the published numbers."""
    chain = [studies[_FIRST], *longer(studies)]
    cells = _cells(chain)
    if len(chain) == 1:
        return []
    named = enumerated([f"`{model}`" for model in dict.fromkeys(model for model, _ in cells)])
    found = []
    for before, after in zip(chain, chain[1:], strict=False):
        of_cells = {cell: our_errors(after, *cell) - our_errors(before, *cell) for cell in cells}
        of_seeds = pd.DataFrame(of_cells).dropna().mean(axis=1)  # over all densities, a number for each seed
        found.append(
            Claim.of(
                f"Training for {_epochs(after)} epochs in place of {_epochs(before)} changes the error by less than "
                f"{_SETTLING:g} points in the setting after {ACCOUNTS[0].who}, in the mean over densities of {named}",
                mean_interval(of_seeds.to_numpy(), corrected(len(chain) - 1)),
                _POINTS,
                low=-_SETTLING,
                high=_SETTLING,
            )
        )
    off = {cell: less_theirs(our_errors(chain[-1], *cell), ACCOUNTS[0], cell, corrected(len(cells))) for cell in cells}
    worst = max(off, key=lambda cell: abs(np.nan_to_num(off[cell].value)))
    words = f"After {_epochs(chain[-1])} epochs there, our {len(cells)} errors are theirs to within {CLOSE:g} points"
    found.append(
        Claim(
            words,
            f"{_POINTS.of(off[worst])} (`{worst[0]}` at density {worst[1]:g}), the largest",
            f"all between −{CLOSE:g} and {CLOSE:g} points",
            of_all([verdict(each, -CLOSE, CLOSE) for each in off.values()]),
        )
    )
    return found


def told(studies: Mapping[str, Kept]) -> list[str]:
    """The errors of the longest training beside the published ones, as a sentence, if there is a longer one."""
    chain = [studies[_FIRST], *longer(studies)]
    if len(chain) == 1:
        return []
    each = [
        f"{_PERCENT.of(_error(chain[-1], cell))}% at density {cell[1]:g} (theirs {ACCOUNTS[0].errors[cell]:g}%)"
        for cell in _cells(chain)
    ]
    return [f"After {_epochs(chain[-1])} epochs in place of {_epochs(chain[0])}, ours are {enumerated(each)}."]


def table(studies: Mapping[str, Kept]) -> str:
    """The errors after each length of training beside the published ones, and a table of their changes."""
    chain = [studies[_FIRST], *longer(studies)]
    cells, epochs = _cells(chain), [_epochs(study) for study in chain]
    errors, changes = [], []
    for cell in cells:
        names = f"`{cell[0]}`", f"{cell[1]:g}"
        off = less_theirs(our_errors(chain[-1], *cell), ACCOUNTS[0], cell, corrected(len(cells)))
        of_lengths = [_PERCENT.of(_error(study, cell)) for study in chain]
        theirs = (
            f"{ACCOUNTS[0].errors[cell]:g}",
            _POINTS.bare(off),
        )
        errors.append((*names, *of_lengths, *theirs))
        between = zip(chain, chain[1:], strict=False)
        apart = [
            mean_interval((our_errors(after, *cell) - our_errors(before, *cell)).to_numpy())
            for before, after in between
        ]
        changes.append((*names, *map(_POINTS.bare, apart)))
    lengths = (f"after {number} epochs, %" for number in epochs)
    steps = (f"from {before} to {after} epochs, points" for before, after in zip(epochs, epochs[1:], strict=False))
    last = f"{ACCOUNTS[0].column}, %", f"{epochs[-1]} epochs less theirs, points"
    seeds = enumerated([f"{_seeds(study, cells)} of `{study.name}`" for study in chain])
    return (
        f"Has the error settled? Longer trainings; seeds are {seeds}:\n\n"
        f"{table_of(('network', 'density', *lengths, *last), errors)}\n\n"
        "Changes of the error, over the seeds that both have:\n\n"
        f"{table_of(('network', 'density', *steps), changes)}"
    )


def _cells(chain: Sequence[Kept]) -> list[tuple[str, float]]:
    """The networks and densities that all of some studies have."""
    return [cell for cell in ACCOUNTS[0].errors if all(len(our_errors(study, *cell)) for study in chain)]


def _epochs(study: Kept) -> int:
    return int(study.about["options"]["train.epochs"])


def _seeds(study: Kept, cells: Sequence[tuple[str, float]]) -> int:
    return max((int(our_errors(study, *cell).notna().sum()) for cell in cells), default=0)


def _error(study: Kept, cell: tuple[str, float]) -> Interval:
    return mean_interval(our_errors(study, *cell).to_numpy())
