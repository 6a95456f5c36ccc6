"""Methods as a study writes them: one of `names.METHODS`, alone or with a variant, as "snip+shuffled".

Imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from experiments.base.errors import InputError, check_known
from experiments.base.names import BATCHES, DENSE, LOTTERY_TICKET, METHODS

__all__ = [
    "INVERTED",
    "REINITIALIZED",
    "SHUFFLED",
    "TWO_OF_FOUR",
    "VARIANTS",
    "batches_read",
    "check_method",
    "parts",
    "place",
]

SHUFFLED, REINITIALIZED, INVERTED = "shuffled", "reinitialized", "inverted"
"""The sanity checks of Frankle et al. (2021), section 5: the mask shuffled within each layer; other weights, newly
drawn, trained under the same mask; and the weights of lowest score kept, in each round of a method that has several."""

TWO_OF_FOUR = "2of4"
"""The two weights of highest score of every four in a row along the inputs, by scores of the unpruned network."""

_HALF = 0.5
"""The one density of `TWO_OF_FOUR`."""

VARIANTS = (SHUFFLED, REINITIALIZED, INVERTED, TWO_OF_FOUR)
"""What a study may write after a method and a plus sign, in the order in which tables list them."""

_REFUSED = {
    (LOTTERY_TICKET, INVERTED): (
        "a lottery ticket has no scores before training to invert; take magnitude+inverted, or lottery_ticket+shuffled"
    ),
    (LOTTERY_TICKET, TWO_OF_FOUR): (
        "a lottery ticket has no scores before training to choose two of four weights by; take magnitude+2of4"
    ),
    ("snip_iterative", TWO_OF_FOUR): "two of four weights are chosen in one round; take snip+2of4",
}
"""Variants that do not exist of a method, with the reason and the remedy."""


def parts(method: str) -> tuple[str, str]:
    """The method that is varied, and the variant; "" where there is none.

    >>> parts("snip+shuffled"), parts("snip")
    (('snip', 'shuffled'), ('snip', ''))
    """
    base, _, variant = method.partition("+")
    return base, variant


def place(method: str) -> tuple[int, int, str]:
    """Where tables list a method, for sorting: dense first, each variant behind its method, unknown names last.

    >>> sorted(["snip+inverted", "random", "old", "snip+shuffled", "snip", "dense"], key=place)
    ['dense', 'random', 'snip', 'snip+shuffled', 'snip+inverted', 'old']
    """
    base, variant = parts(method)
    methods, variants = (DENSE, *METHODS), ("", *VARIANTS)
    return (
        methods.index(base) if base in methods else len(methods),
        variants.index(variant) if variant in variants else len(variants),
        method,
    )


def batches_read(methods: Iterable[str]) -> int:
    """How many labelled batches there must be for the scores of all methods.

    >>> batches_read(["random", "snip+shuffled"]), batches_read(["random", "synflow"])
    (1, 0)
    """
    return max(BATCHES.get(parts(method)[0], 0) for method in methods)


def check_method(method: str, densities: Sequence[float]) -> None:
    """Raise InputError where there is no such method, or it cannot be had at one of the densities.

    >>> check_method("snip+shufled", [0.1])
    Traceback (most recent call last):
    ...
    experiments.base.errors.InputError: There is no variant 'shufled' of snip; the nearest to it is shuffled: there are
    shuffled, reinitialized, inverted, 2of4.
    """
    base, variant = parts(method)
    check_known("method", base, METHODS, others="each also with a variant, as snip+shuffled")
    if base == method:
        return
    check_known("variant", variant, VARIANTS, of=f" of {base}")
    if (base, variant) in _REFUSED:
        raise InputError(f"There is no method {method}: {_REFUSED[base, variant]}.")
    others = [f"{density:g}" for density in densities if density != _HALF]
    if variant == TWO_OF_FOUR and others:
        raise InputError(
            f"{method} keeps {_HALF:g} of the weights, but density has {others[0]} too: run it in a study of "
            f"its own, with density = [{_HALF:g}]."
        )
