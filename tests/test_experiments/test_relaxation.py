"""A small run of the benchmark of training that is predicted from products."""

from experiments.benchmarks import relaxation


def test_the_dense_prediction_is_within_the_bound():
    distance = relaxation.compare(relaxation.TOY)
    assert 0 < distance.actual <= distance.bound
