import jax
import numpy as np
import pytest

from experiments.base.errors import InputError
from experiments.train import distributed


@pytest.mark.parametrize(
    ("coordinator", "count", "number", "words"),
    [
        (None, 2, 0, "--processes and --process need the address of process 0, as --coordinator HOST:PORT."),
        ("auto", None, 1, "--processes and --process need the address"),
        ("localhost", 2, 0, "--coordinator is 'localhost', but must be HOST:PORT, or auto."),
        ("localhost:", 2, 0, "must be HOST:PORT"),
        (":8000", 2, 0, "must be HOST:PORT"),
        ("localhost:8000", None, 0, "needs --processes and --process too"),
        ("localhost:8000", 2, None, "needs --processes and --process too"),
        ("localhost:8000", 2, 2, "--process is 2, but must be from 0 to 1, as there are 2."),
        ("localhost:8000", 2, -1, "--process is -1"),
    ],
)
def test_what_cannot_be_joined_is_refused(coordinator, count, number, words):
    with pytest.raises(InputError) as caught, distributed.joined(coordinator, processes=count, process=number):
        pass
    assert words in str(caught.value)


@pytest.mark.parametrize("kind", [RuntimeError, ValueError])
def test_processes_that_do_not_find_each_other_say_so(kind, monkeypatch):
    def lost(*_):
        raise kind("coordinator_address should be defined.\nand more")

    monkeypatch.setattr(jax.distributed, "initialize", lost)
    words = f"by --coordinator auto: {kind.__name__}: coordinator_address should be defined.$"
    with pytest.raises(InputError, match=words), distributed.joined("auto", processes=None, process=None):
        pass


def test_one_process_is_the_first_and_takes_its_own_word():
    with distributed.joined(None, processes=None, process=None), distributed.failing_together():
        pass
    with pytest.raises(OSError, match="mine"), distributed.failing_together():
        raise OSError("mine")
    tree = {"weights": np.arange(3.0)}
    assert distributed.is_first() and distributed.broadcast_from_first(tree) is tree


@pytest.fixture
def said(monkeypatch):
    """What two processes say to each other, the second of which is another."""
    heard = ["", ""]

    def meet(words):
        heard[0] = words
        return heard

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(distributed, "_exchanged", meet)
    return heard


def test_what_fails_in_one_process_fails_in_the_others(said):
    with distributed.failing_together():
        pass
    assert said == ["", ""]
    said[1] = "?MemoryError: no memory"
    with (
        pytest.raises(RuntimeError, match=r"Process 1 cannot go on: MemoryError: no memory\."),
        distributed.failing_together(),
    ):
        pass
    said[1] = "!There is no such file"
    with (
        pytest.raises(InputError, match=r"Process 1 cannot go on: There is no such file\."),
        distributed.failing_together(),
    ):
        pass


@pytest.mark.parametrize(
    ("error", "words"),
    [(MemoryError("no memory\nat all"), "?MemoryError: no memory"), (InputError("No such file."), "!No such file")],
)
def test_a_process_says_why_it_failed_and_keeps_its_own_error(error, words, said):
    said[1] = "?other"
    with pytest.raises(type(error)) as caught, distributed.failing_together():
        raise error
    assert caught.value is error and said[0] == words
