"""A small run of the benchmark of training that is predicted from products."""

from experiments.benchmarks import relaxation


def test_training_from_products_is_measured_beside_the_dense_prediction(capsys):
    relaxation.main(["--toy"])
    printed = capsys.readouterr().out
    for words in ("400 rows: critical learning rate", "on 3 test points", "100 rows: ", "of which the bound is"):
        assert words in printed


def test_the_dense_prediction_is_within_the_bound():
    distance = relaxation.compare(relaxation.TOY)
    assert 0 < distance.actual <= distance.bound
