import jax
import pytest

from experiments.base.seeds import key_of


def words(key):
    return jax.random.key_data(key).tolist()


def test_a_key_depends_on_seed_and_names_alone():
    # written down once: results that were kept must go on with the same keys
    assert words(key_of(0, "snip", 0.1)) == [3294313055, 3590398658]


@pytest.mark.parametrize("other", [(1, "snip", 0.1), (0, "snip", 0.2), (0, "random", 0.1), (0, "snip")])
def test_every_name_has_its_own_key(other):
    assert words(key_of(0, "snip", 0.1)) != words(key_of(*other))
