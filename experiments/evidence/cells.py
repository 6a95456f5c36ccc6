"""The pruned networks of kept studies as arrays: groups of one data set, network and density × methods × seeds."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from experiments.base.names import DENSE, METHODS
from experiments.base.wording import enumerated, percent
from experiments.evidence.kept import Kept
from experiments.evidence.statistics import DRAWS, Resampled, resampled

__all__ = ["Cells", "Group", "dense_accuracy", "in_order", "inconclusive", "tables"]

Group = tuple[str, str, float]
"""A data set, a network and a density."""

_BOOTSTRAP_SEED = 0

_LEAST_DENSE_ACCURACY = 0.55
"""A network whose dense accuracy is below this says nothing of its prunings."""


@dataclasses.dataclass(frozen=True, eq=False)
class Cells:
    """The finished pruned networks of a table.

    Attributes:
        table: a row for each network, dense ones among them.
        methods: the methods that are compared, in the order of tables; all others are left out.
        groups: data set, network and density of each group.
    """

    table: pd.DataFrame
    methods: tuple[str, ...]

    @functools.cached_property
    def groups(self) -> tuple[Group, ...]:
        """Data set, network and density of each group, densities from high to low."""
        pruned = self.table[self.table["method"].isin(self.methods)]
        found = {(row.data, row.model, row.density) for row in pruned.itertuples()}
        places = {
            name: place for place, name in enumerate(dict.fromkeys(zip(pruned["data"], pruned["model"], strict=True)))
        }
        return tuple(sorted(found, key=lambda group: (places[group[:2]], -group[2])))

    @functools.cached_property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of all groups."""
        return tuple(sorted({int(seed) for seed in self.table["seed"]}))

    @functools.cached_property
    def settings(self) -> dict[tuple[str, str], np.ndarray]:
        """The places of the groups of each data set and network, densities from high to low."""
        names = dict.fromkeys(group[:2] for group in self.groups)
        return {name: np.array([at for at, group in enumerate(self.groups) if group[:2] == name]) for name in names}

    @property
    def strata(self) -> list[int]:
        """For each group, the number of its data set and network."""
        names = list(self.settings)
        return [names.index(group[:2]) for group in self.groups]

    def values(self, name: str, methods: Sequence[str] | None = None) -> np.ndarray:
        """A column as an array (groups, methods, seeds), NaN where there is no network; of `methods` or of all."""
        chosen = self.methods if methods is None else tuple(methods)
        shape = len(self.groups), len(chosen), len(self.seeds)
        array = np.full(shape, np.nan)
        places = [{key: place for place, key in enumerate(keys)} for keys in (self.groups, chosen, self.seeds)]
        rows = self.table[self.table["method"].isin(chosen)]
        keys = zip(
            zip(rows["data"], rows["model"], rows["density"], strict=True), rows["method"], rows["seed"], strict=True
        )
        for (group, method, seed), value in zip(keys, rows[name], strict=True):
            if group in places[0]:
                array[places[0][group], places[1][method], places[2][seed]] = float(value)
        return array

    def resampled(self) -> Resampled:
        """Draws of methods and of seeds."""
        there = ~np.isnan(self.values("test_accuracy")).all(axis=1)
        return resampled(self.strata, len(self.methods), there, seed=_BOOTSTRAP_SEED, draws=DRAWS)

    def untrained(self, group: Group, method: str) -> int:
        """How many runs of a method in a group did not train."""
        rows = self.table[self.table["method"] == method]
        of_group = [key == group for key in zip(rows["data"], rows["model"], rows["density"], strict=True)]
        return int((rows.loc[of_group, "did_not_train"] != "").sum())

    def twins(self) -> list[str]:
        """Sentences on pairs of methods with the same accuracy in every run on a network, which count as two."""
        accuracy, told = self.values("test_accuracy"), []
        for (data, model), places in self.settings.items():
            of_setting = accuracy[places]
            for (first, left), (second, right) in itertools.combinations(enumerate(self.methods), 2):
                both = of_setting[:, first], of_setting[:, second]
                if not np.isnan(both[0]).all() and np.array_equal(*both, equal_nan=True):
                    told.append(
                        f"On `{model}` on {data}, `{left}` and `{right}` have the same accuracies and count twice."
                    )
        return told

    def restricted(self, keep: Callable[[Group], bool]) -> Cells:
        """The cells of those groups that `keep` takes."""
        rows = zip(self.table["data"], self.table["model"], self.table["density"], strict=True)
        return Cells(self.table[np.array([keep(group) for group in rows], bool)], self.methods)


def in_order(methods: Sequence[str]) -> list[str]:
    """The names of methods in the order of tables, each once; variants of a method come last."""
    places = {name: place for place, name in enumerate(METHODS)}
    return sorted(dict.fromkeys(methods), key=lambda name: (places.get(name, len(places)), name))


def tables(studies: Sequence[Kept]) -> pd.DataFrame:
    """The finished networks of several studies in one table."""
    return pd.concat([study.finished for study in studies], ignore_index=True)


def inconclusive(table: pd.DataFrame) -> tuple[list[tuple[str, str]], list[str]]:
    """The data sets and networks whose unpruned network learned too little, and sentences that say so, if any."""
    settings = dict.fromkeys(zip(table["data"], table["model"], strict=True))
    accuracies = {setting: dense_accuracy(table, *setting) for setting in settings}
    left_out = [setting for setting, accuracy in accuracies.items() if accuracy < _LEAST_DENSE_ACCURACY]
    if not left_out:
        return [], []
    names = [f"`{model}` on {data} ({percent(accuracies[data, model])})" for data, model in left_out]
    return left_out, [
        f"No conclusion is drawn where the unpruned network is right in less than {_LEAST_DENSE_ACCURACY:.0%} of the "
        f"test images: {enumerated(names)} {'is' if len(names) == 1 else 'are'} left out."
    ]


def dense_accuracy(table: pd.DataFrame, data: str, model: str) -> float:
    """The mean accuracy of the unpruned network; NaN where it is not in the table."""
    rows = table[(table["data"] == data) & (table["model"] == model) & (table["method"] == DENSE)]
    return float(rows["test_accuracy"].mean()) if len(rows) else float("nan")
