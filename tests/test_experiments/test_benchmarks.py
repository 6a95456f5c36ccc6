"""Small runs of benchmarks that nothing else runs."""

import pytest

from experiments.benchmarks import selection


@pytest.mark.parametrize("density", ("0.5", "0.05"))
def test_selection_is_measured_beside_its_peers(density, capsys):
    selection.main(["--size", "3000", "--repeats", "1", "--density", density])
    printed = capsys.readouterr().out
    assert f"density {density}: " in printed
    for name in ("from_scores", "under jit", 'scope "erk"', "np.partition", "jnp.sort"):
        assert name in printed
