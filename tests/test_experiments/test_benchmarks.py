"""Small runs of benchmarks that nothing else runs."""

import importlib

import pytest

from experiments.benchmarks import lifting, selection, shrink, synflow


def test_selection_is_measured_beside_its_peers(capsys):
    selection.main(["--size", "300", "--repeats", "1", "--density", "0.05"])
    printed = capsys.readouterr().out
    assert "density 0.05: " in printed
    for name in ("from_scores", "under jit", 'scope "erk"', "np.partition", "jnp.sort"):
        assert name in printed


def test_a_shrunk_network_is_measured_beside_the_whole(capsys):
    few = ["--side", "8", "--batch", "2", "--rounds", "2", "--repeats", "1"]
    shrink.main(["--network", "lenet_300_100", "--density", "0.02", *few])
    printed = capsys.readouterr().out
    for words in ("lenet_300_100, density 0.02: ", "forward", "gradient", "outputs differ by at most"):
        assert words in printed
    whole, small = printed.split("density 0.02: ")[1].split(" parameters")[0].replace(",", "").split(" → ")
    assert int(small) < int(whole)


def test_synflow_says_what_it_compares_with(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(SystemExit, match="pip install torch==2.13.0"):
        synflow.main([])


def test_synflow_keeps_what_pytorch_keeps():
    """Where PyTorch is installed, on the same weights in double precision: shortcuts, batch norm, forty rounds."""
    pytest.importorskip("torch")
    network = lifting.ResNet((1, 1, 1), 8, True)
    found = synflow.measure(network, density=0.02, rounds=40, side=8, repeats=1)
    assert found.kept > 0
    assert found.differ_in_double == 0
