"""The page of the documentation with what the studies have shown, and its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.base.files import write_atomically
from experiments.base.names import DENSE
from experiments.evidence import (
    convergence,
    every_method,
    kept,
    ordering,
    path_scores,
    published,
    sanity,
    widths,
)
from experiments.evidence.kept import Kept
from experiments.evidence.sections import Missing, Section, markdown, table_of, told_methods
from experiments.evidence.statistics import DRAWS
from experiments.report.drawing import png

__all__ = ["FOLDER", "sections", "text", "write"]

FOLDER = Path(__file__).parents[2] / "docs" / "study"

_OPENING = """# The evidence

What our studies say of pruning before training, claim by claim. Each claim has a number, an interval and a verdict.
All of them, and every figure, are computed from tables that are kept beside this page; each section names its tables.
“The paper” is Gebhart, Saxena and Schrater, “A unified paths perspective for pruning at initialization”, 2021. One
command draws the page again:

    python -m experiments.evidence
"""

_HOW_TO_READ = """## How to read it

- A *network* is an architecture, such as `resnet_20`. A *run* prunes and trains it once: on one data set, by one
  method, to one density (the share of the weights that is kept), with one seed, which draws the initial weights and
  the order of the images. A *cell* is all seeds of one data set, network, method and density; a *group* is all
  methods of one data set, network and density.
- A claim says that a number lies in some range. It **holds** where the whole interval of the number lies inside the
  range, it **does not hold** where the whole interval lies outside, and it is **not settled** otherwise. A claim of
  several numbers holds where all of them do, and does not where one does not. The program decides, by this rule
  alone.
- *Surely* means: by the whole interval. Where K numbers of one list are tried, each interval has the level 1 − 0.05/K
  instead of 95%, so that all of the list contain their numbers with probability 95% (Bonferroni’s correction). Over
  the whole page, with its many lists, some interval may miss.
- The *bootstrap of methods and seeds* gives intervals that also allow for other methods. Each of its {draws} draws
  picks n − 1 of the n methods, and for each data set and network m − 1 of the m seeds, both with replacement. Data
  sets, networks and densities are not drawn: the intervals speak of these alone. The interval is that of the
  percentiles. Other intervals are Student’s t over seeds, which speak of these methods alone.
- Numbers in brackets are the ends of an interval. Points are percentage points of accuracy or error. A decade is a
  factor of ten. Logarithms are natural where nothing else is said. Θ is the Neural Tangent Kernel at initialization,
  Π the Path Kernel.
- Runs without a result, such as those of a method that is not defined for their network, are left out. Runs that did
  not train count with the accuracy that they have, where nothing else is said. How many there are of both stands at
  the end of the page.
- All seeds are tested on the same images. No interval here contains the error of a test set: on the 359 images of
  digits, one image is 0.28 points.
"""

_CUT = """## {number}. What was cut, and how to run more

- Everything here ran on two CPU cores. So the networks are small, the data sets small or cut, and the training short.
  What is shown is shown of such networks; the tables below say which. VGG-16 and ResNet-18 on CIFAR-10, CIFAR-100 and
  Tiny ImageNet are the study `paper`, which needs a GPU: `python -m experiments sweep paper --data-dir DIR`.
- The claims were not registered before the studies. What they compare was chosen in part after results had been seen:
  `mnist-methods` came into sections 3 and 6 when those of `digits` were known, and four claims of section 7 after its
  table.
- Θ and Π are measured with batch norm in evaluation mode, at the statistics that training begins with.
- Methods that score in rounds take the study’s `measure.rounds`, where 100 are usual in the literature. This and every
  other option of a study stands in its JSON.
- To add seeds, methods or densities, change the config and run the same command: it computes what is new. Then keep
  the results, and draw the page again:

      python -m experiments sweep digits --set seeds=20
      python -m experiments.evidence keep runs/digits
      python -m experiments.evidence

- [A study of your own](../own-studies.md) says how to bring other networks, data and settings.

### The kept tables

Each table is `results/NAME.csv.gz`, a row for each run, and its config, versions, commit and hours of computing
are `results/NAME.json`. `pandas.read_csv` reads it; what is the same in all rows stands under `same` in the JSON. A
commit “with changes” had files that were not committed, so that it alone does not give the same program.

{tables}
"""


def write(folder: Path, widths_file: Path) -> Path:
    """Write README.md and figures/ of the results in a folder; returns the page’s file."""
    studies = kept.read_all(folder / "results")
    found = sections(studies, widths_file)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    for section in found:
        for name, figure in section.figures.items() if isinstance(section, Section) else ():
            write_atomically(folder / "figures" / f"{name}.png", png(figure))
    page = folder / "README.md"
    write_atomically(page, text(found, studies))
    return page


def sections(studies: Mapping[str, Kept], widths_file: Path) -> list[Section | Missing]:
    """The sections of the page, in its order."""
    return [
        published.section(studies),
        every_method.section(studies),
        ordering.section(studies),
        convergence.section(studies),
        sanity.section(studies),
        path_scores.section(studies),
        widths.section(widths_file),
    ]


def text(found: Sequence[Section | Missing], studies: Mapping[str, Kept]) -> str:
    """The whole page."""
    numbered = [*enumerate(found, start=1)]
    glance = [
        (str(number), claim.words, claim.number, f"**{claim.verdict}**")
        for number, section in numbered
        if isinstance(section, Section)
        for claim in section.claims
    ]
    parts = [
        _OPENING.rstrip(),
        "## In short",
        "\n".join(f"{number}. **{section.title}** {_in_short(section)}" for number, section in numbered),
        _HOW_TO_READ.format(draws=f"{DRAWS:,}").rstrip(),
        *(markdown(number, section) for number, section in numbered),
        "## All claims",
        table_of(("section", "claim", "number [interval]", "verdict"), glance),
        _CUT.format(number=len(found) + 1, tables=_tables(studies)).rstrip(),
    ]
    return "\n\n".join(parts) + "\n"


def _in_short(section: Section | Missing) -> str:
    return section.short if isinstance(section, Section) else f"left out, because {section.lacking} are not kept yet."


def _tables(studies: Mapping[str, Kept]) -> str:
    if not studies:
        return "No study is kept yet."
    rows = []
    for name, study in studies.items():
        there, wanted = study.about["trials"], study.about["of"]
        densities = study.table.loc[study.table["method"] != DENSE, "density"].unique()
        methods = [method for method in study.table["method"].unique() if method != DENSE]
        made = study.about["made"]
        rows.append(
            (
                f"[{name}](results/{name}.csv.gz)",
                str(there) if there == wanted else f"{there} of {wanted}",
                str(study.failed),
                str(study.untrained),
                ", ".join(study.table["data"].unique()),
                ", ".join(study.table["model"].unique()),
                told_methods(methods).removesuffix(" of them"),
                ", ".join(f"{density:g}" for density in sorted(densities, reverse=True)),
                str(study.table["seed"].nunique()),
                f"{made['hours']:g} ({', '.join(made['devices'])})",
            )
        )
    head = ("study", "runs", "no result", "did not train", "data", "networks", "methods", "densities", "seeds")
    return table_of((*head, "hours"), rows)
