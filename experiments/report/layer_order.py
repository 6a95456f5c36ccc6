"""The layers of a network from the input on, as pictures number them and captions name them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments.networks.by_name import Order, order_of
from experiments.records.study_table import StudyTable

__all__ = ["known_order", "layer_order", "numbered"]

_BY_LAYER = ("layer_density", "dead_units")
"""The tables of a trial that have a number for each layer, and for the units of each layer."""


_IN_ORDER = 4
"""The format of results from which on they have the layers in the order of the network."""


def layer_order(part: StudyTable) -> Order:
    """The layers and the units of one setting from the input on; as the results have them where that is not known.

    Results of older versions have the layers in the order of their names, so the network itself is asked.
    """
    ((_, name),) = part.settings
    found = [list(dict.fromkeys(key for table in part.trials[column] for key in table)) for column in _BY_LAYER]
    known = known_order(part.config, name) or Order((), ())
    return Order(*(tuple(sorted(keys, key=_place_in(order))) for keys, order in zip(found, known, strict=True)))


def known_order(config: Mapping[str, Any], name: str) -> Order | None:
    """The order of the layers of a model of a study's config; None for a network of the user's own."""
    for model in config["options"].get("model", []):
        if model.get("name") == name and "network" in model:
            return order_of(str(model["network"]), depth=int(model.get("depth", 0)))
    return None


def _place_in(order: Sequence[str]) -> Callable[[str], int]:
    places = {name: place for place, name in enumerate(order)}
    return lambda name: places.get(name, len(places))  # names that are not in the order stay behind it, as they were


def numbered(study: StudyTable) -> str:
    """In which order the layers are numbered, and their names where there are few."""
    sentences = ["Layers and units are numbered from the input on."]
    for setting, part in study.parts():
        names = layer_order(part).layers
        if known_order(study.config, part.settings[0][1]) is None and study.config["format"] < _IN_ORDER:
            sentences.append(f"Those of {setting} are in the order of their names, as the results have them.")
        if 0 < len(names) <= _FEW_LAYERS:
            sentences.append(f"The layers of {setting}: {', '.join(names)}.")
    return " ".join(sentences)


_FEW_LAYERS = 5
"""A caption names as many layers of a network."""
