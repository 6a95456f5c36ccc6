"""What a section of the page is, and how it is written as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from experiments.base.names import DENSE
from experiments.base.wording import counted, enumerated
from experiments.evidence.claims import Claim, tally
from experiments.evidence.kept import Kept

__all__ = [
    "TEST_IMAGES",
    "Missing",
    "Section",
    "bullets",
    "described",
    "footer",
    "link",
    "markdown",
    "not_kept",
    "picture",
    "recipe",
    "shown_names",
    "table_of",
    "told_methods",
]


TEST_IMAGES = {"digits": 359, "mnist": 10_000, "fashion_mnist": 10_000, "cifar10": 10_000}
"""How many images each data set is tested on. They are the same for every seed."""


class Section(NamedTuple):
    """A section of the page.

    Attributes:
        title: its heading, without a number.
        question: what it asks.
        short: what came out, in one plain sentence with its number; it stands in the list at the head of the page too.
        answer: what there is to say besides, with numbers and intervals: a paragraph or a list, or nothing.
        claims: what is claimed, each with its verdict.
        body: paragraphs, tables and figures, as Markdown.
        sureness: what limits the answer, each a sentence or two.
        sources: links to the tables that it reads, as `link` gives them.
        figures: the figures of its body, by the names of their files.
    """

    title: str
    question: str
    short: str
    answer: str
    claims: Sequence[Claim]
    body: Sequence[str]
    sureness: Sequence[str]
    sources: Sequence[str]
    figures: Mapping[str, Figure]


class Missing(NamedTuple):
    """A section that is left out, because what it reads is not there: `lacking` in words, and commands that make it."""

    title: str
    question: str
    lacking: str
    commands: Sequence[str]


def not_kept(title: str, question: str, studies: Sequence[str]) -> Missing:
    """A section that is left out, because these studies are not kept yet."""
    commands = [
        command
        for name in studies
        for command in (f"python -m experiments sweep {name}", f"python -m experiments.evidence keep runs/{name}")
    ]
    return Missing(title, question, f"the results of {enumerated([f'`{name}`' for name in studies])}", commands)


def markdown(number: int, section: Section | Missing) -> str:
    """The section under its number."""
    head = [f"## {number}. {section.title}", f"*{section.question}*"]
    if isinstance(section, Missing):
        left_out = f"Left out, because {section.lacking} are not kept here yet. To make them:"
        return "\n\n".join([*head, left_out, "\n".join(f"    {command}" for command in section.commands)])
    return "\n\n".join(
        [
            *head,
            f"**Answer.** {section.short}",
            *([section.answer] if section.answer else []),
            f"**Verdict.** {tally(section.claims)}",
            claims_table(section.claims),
            *section.body,
            f"**How sure.** Drawn from {enumerated(section.sources)}.",
            bullets(section.sureness),
        ]
    )


def link(name: str) -> str:
    """A link to the table of a kept study."""
    return f"[{name}](results/{name}.csv.gz)"


def claims_table(claims: Sequence[Claim]) -> str:
    """A row for each claim."""
    rows = [(claim.words, claim.number, claim.bounds, f"**{claim.verdict}**") for claim in claims]
    return table_of(("claim", "number [interval]", "claimed", "verdict"), rows)


def table_of(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def bullets(sentences: Iterable[str]) -> str:
    """A list of Markdown."""
    return "\n".join(f"- {sentence}" for sentence in sentences)


def picture(name: str, title: str, caption: str) -> str:
    """A figure with its caption."""
    return f"![{title}](figures/{name}.png)\n\n{caption}"


def footer(studies: Iterable[Kept]) -> str:
    """The line under a figure: studies, seeds and versions."""
    parts = [f"{study.name}: {counted(study.about['trials'], 'run')}, {_seeds(study)}" for study in studies]
    versions = {
        f"{name} {study.about['versions'][name]}": None
        for study in studies
        for name in ("pathjax", "jax")
        if name in study.about["versions"]
    }
    return " · ".join([*parts, ", ".join(versions)])


def described(study: Kept) -> str:
    """What a kept study compares, how it begins and how it trains, in a few sentences."""
    options = study.about["options"]
    methods = [method for method in study.table["method"].unique() if method != DENSE]
    densities = sorted({float(density) for density in study.table.loc[study.table["method"] != DENSE, "density"]})
    named = enumerated([_network(name, study) for name in study.table["model"].unique()])
    data = enumerated([_with_test_images(name, study) for name in study.table["data"].unique()])
    shares = enumerated([f"{density:g}" for density in densities[::-1]]) if densities else ""
    at = f" at {'density' if len(densities) == 1 else 'densities'} {shares}" if densities else ""
    there, wanted = study.about["trials"], study.about["of"]
    unfinished = "" if there == wanted else f" It is unfinished: {there} of {wanted} runs are there."
    return (
        f"Study `{study.name}`: {named} on {data}, {told_methods(methods)}{at}, {_seeds(study)}."
        f"{_begun(options, len(methods))} Trained by {recipe(options)}.{unfinished}"
    )


def told_methods(methods: Sequence[str]) -> str:
    """How many methods there are, and how many variants of them beside.

    >>> told_methods(["snip", "synflow", "snip+shuffled"]), told_methods(["snip"])
    ('2 methods and 1 variant of them', '1 method')
    """
    variants = sum("+" in method for method in methods)
    told = counted(len(methods) - variants, "method")
    return f"{told} and {counted(variants, 'variant')} of them" if variants else told


def _network(name: str, study: Kept) -> str:
    """A network with what its name does not say: what it is, its width, and how many weights can be pruned."""
    about: dict[str, Any] = next(
        (model for model in study.about["options"].get("model", []) if model["name"] == name), {}
    )
    told = [f"`{about['network']}`"] if about.get("network", name) != name else []
    told += [f"all widths × {about['factor']:g}"] if about.get("factor", 1.0) != 1 else []
    weights = study.table.loc[study.table["model"] == name, "prunable"].max()
    return f"`{name}` ({', '.join([*told, f'{weights:,} weights'])})"


def _with_test_images(data: str, study: Kept) -> str:
    """A data set with the size of its test set."""
    some = study.about["options"].get("test_images", 0)
    images = min(some or TEST_IMAGES[data], TEST_IMAGES[data]) if data in TEST_IMAGES else some
    return f"{data} ({images:,} test images)" if images else data


def _begun(options: Mapping[str, Any], methods: int) -> str:
    """The initial weights and the rounds of methods that score in rounds, as sentences that begin with a space."""
    variance = {
        "kaiming": "of variance 2 over the inputs of a unit",
        "lecun": "of variance 1 over the inputs of a unit",
    }
    inits = dict.fromkeys(model["init"] for model in options.get("model", []) if "init" in model)
    words = [variance.get(init, f"those of `{init}`") for init in inits]
    told = f" Initial weights are {enumerated(words)}." if words else ""
    rounds = options.get("measure.rounds")
    return told + (f" Methods that score in rounds take {rounds}." if rounds and methods > 1 else "")


def recipe(options: Mapping[str, Any]) -> str:
    """How a study trains, in words that begin with "SGD"."""
    epochs, batch, images = options["train.epochs"], options["train.batch_size"], options.get("train_images", 0)
    schedule = {
        "constant": "constant",
        "cosine": "falling to 0 along a cosine",
        "step": "cut tenfold after half and again after three quarters of the steps",
    }[options["train.schedule"]]
    momentum = options.get("train.momentum", 0.9)
    steps = f", {epochs * (images // batch):,} steps" if images else ""
    parts = [
        f"with momentum {momentum:g}" if momentum else "without momentum",
        f"learning rate {options['train.learning_rate']:g}, {schedule}",
        f"batches of {batch}",
        f"{counted(epochs, 'epoch')} of {f'{images:,} images' if images else 'all images'}{steps}",
    ]
    decay = options.get("train.weight_decay", 0.0)
    parts += [f"weight decay {decay:g}"] if decay else []
    parts += ["images cropped at random"] if options.get("train.augment") else []
    return f"SGD {', '.join(parts)}"


def shown_names(methods: Iterable[str]) -> str:
    """Methods in words of a sentence."""
    return enumerated([f"`{method}`" for method in methods])


def _seeds(study: Kept) -> str:
    seeds = sorted({int(seed) for seed in study.table["seed"]})
    return "seed 0" if len(seeds) == 1 else f"{len(seeds)} seeds"
