"""The pictures of kernels: what they show follows the numbers, and their files are read as they were written."""

import math
from pathlib import Path

import numpy as np
import pytest

from experiments.base.errors import InputError
from experiments.measure import kernel_pictures
from experiments.records.study_table import tabulated
from experiments.report import drawing, kernel_figures, kernel_findings, page
from tests.test_experiments.examples import example_kernels, example_study

CELLS = [("dense", 1.0), *((method, density) for method in ("random", "magnitude") for density in (0.5, 0.02))]
KERNELS = {cell: example_kernels(seed) for seed, cell in enumerate(CELLS)}


def test_findings_of_kernels_follow_the_numbers():
    told = kernel_findings.of_shares(KERNELS | {("random", 0.02): example_kernels(shares=np.full(5, 0.15))})
    assert "the 5 modes carry 45.0% of Tr Θ in the dense network" in told
    assert "at density 0.02 from 45.0% (magnitude) to 75.0% (random)" in told
    decades = (3 + 5 - 1) / math.log(10)
    assert f"lies {decades:.1f} to {decades:.1f} decades above λmax(Θ)" in told
    falls = 3 / math.log(10)
    assert f"fall by {falls:.1f} and {falls:.1f} decades in the dense network" in kernel_findings.of_eigenvalues(
        KERNELS
    )
    assert "dense: Θ 0.30, its part 0.20, K_v 0.10" in kernel_findings.of_maps(KERNELS, [("dense", 1.0)])


def test_maps_are_of_the_dense_network_and_the_ends_of_the_lowest_density():
    trials = example_study(data=("digits",), models=("fc",), methods=("random", "magnitude"), densities=(0.5, 0.02))
    cells = tabulated(trials, {}, Path("here")).cells
    # later methods of the example are more accurate
    assert kernel_findings.best_and_worst(cells) == [("dense", 1.0), ("magnitude", 0.02), ("random", 0.02)]


def test_kernels_that_are_all_zero_are_drawn_and_told_without_nan():
    dead = example_kernels(shares=np.zeros(5), cosines=np.zeros((3, 6, 6)))
    dead = dead._replace(
        log_eigenvalues=np.full(5, -np.inf), log_ntk_eigenvalues=np.full(12, -np.inf), alignments=np.full(3, np.nan)
    )
    broken = KERNELS | {("random", 0.02): dead._replace(bounds=np.full(6, -np.inf))}
    for draw in (kernel_figures.eigenvalues, kernel_figures.cumulative_shares):
        drawing.svg(draw(broken, "footer"))
    drawing.svg(kernel_figures.heat_maps(broken, [("dense", 1.0), ("random", 0.02)], "footer"))
    for told in (
        kernel_findings.of_eigenvalues(broken),
        kernel_findings.of_shares(broken),
        kernel_findings.of_maps(broken, [("random", 0.02)]),
    ):
        assert "nan" not in told


def test_examples_are_ordered_by_class():
    labels = np.array([1, 0, 1, 0, 1, 0])
    same_class = (labels[:, None] == labels[None, :]).astype(float)
    kernels = {("dense", 1.0): example_kernels(cosines=np.stack([same_class] * 3))}
    figure = kernel_figures.heat_maps(kernels, CELLS[:1], "")
    shown = figure.axes[0].images[0].get_array()
    np.testing.assert_array_equal(shown, np.kron(np.eye(2), np.ones((3, 3))))


def test_numbers_are_read_as_they_were_written_and_broken_files_named(tmp_path):
    file = kernel_pictures.file_of(tmp_path, "digits", "fc", "snip", 0.02)
    kernel_pictures.save(file, example_kernels())
    assert file.name == "digits-fc-snip-0.02.npz"
    for read, written in zip(kernel_pictures.load(file), example_kernels(), strict=True):
        np.testing.assert_array_equal(read, written)
    before = file.read_bytes()
    kernel_pictures.save(file, example_kernels())
    assert file.read_bytes() == before
    file.write_bytes(b"PK half a file")
    with pytest.raises(InputError, match=r"snip-0.02.npz cannot be read .*; remove it, and the same sweep"):
        kernel_pictures.load(file)


def test_drawings_do_not_share_names():
    picture = (
        '<?xml?><svg width="10pt" height="20pt"><metadata>x</metadata><g id="a"/><use href="#a" clip="url(#a)"/></svg>'
    )
    inlined = page._inline(picture, prefix="f1-", label="A & B")
    assert 'id="f1-a"' in inlined and 'href="#f1-a"' in inlined and "url(#f1-a)" in inlined
    assert "metadata" not in inlined and "pt" not in inlined and "A &amp; B" in inlined
