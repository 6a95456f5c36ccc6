"""Every benchmark at toy size, in this process; and how their rows are measured, kept and shown."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import pytest

from experiments.benchmarks import (
    command,
    growth_figure,
    lifting,
    machines,
    page,
    processes,
    results,
    selection,
    synflow,
)
from experiments.benchmarks.machines import Machine
from experiments.benchmarks.results import Run
from experiments.benchmarks.rows import Curve, Row, cells, number

MACHINE = Machine("cpu", "cpu", "a processor", 2, {"jax": "0.10.2"}, "0123abcd")
ACCELERATOR = MACHINE._replace(platform="gpu", kind="NVIDIA H100 80GB HBM3")
CURVE = Curve("work", "size", [1, 2, 4], [1.0, 2.0, 4.0], [1.0, 1.0, 1.0])
PEER = Row("a sum", "s", 1.0, peer=4.0, beside="a peer", limit=0.5, bound="one pass", aim_ratio=1 / 3)
ALONE = Row("a search", "GB", 5.0, aim=3.5, note="of the process", curve=CURVE)


class Point(NamedTuple):
    """What a process measures."""

    first: float
    second: float


def run_of(*rows, machine=MACHINE, others=0.0):
    return Run(machine, "2026-11-27", 12.0, (0.1, 1.9), others, "", tuple(rows))


@pytest.fixture
def in_this_process(monkeypatch):
    """Measurements without processes of their own, which would take seconds to import JAX."""
    monkeypatch.setattr(processes, "fresh", lambda measurement: measurement())


@pytest.mark.parametrize("name", command.BENCHMARKS)
def test_a_benchmark_gives_sound_rows(name, in_this_process):
    module = importlib.import_module(f"experiments.benchmarks.{name}")
    rows = list(module.rows(module.TOY, 1))
    assert rows and len({row.work for row in rows}) == len(rows)
    for row in rows:
        assert math.isfinite(row.ours) and (row.ours > 0 or row.aim == 0 or row.curve)
        if row.curve:
            assert all(0 < time < math.inf for time in (*row.curve.ours, *row.curve.peer))
        if row.peer is not None:
            assert 0 < row.peer < math.inf and row.beside
            assert row.ratio == row.ours / row.peer
        assert row.limit is None or (0 < row.limit < math.inf and row.bound)


def test_every_benchmark_is_in_the_table():
    folder = Path(command.__file__).parent
    assert {file.stem for file in folder.glob("*.py") if "\ndef rows(" in file.read_text()} == set(command.BENCHMARKS)


def test_synflow_keeps_what_pytorch_keeps():
    """Where PyTorch is installed, on the same weights in double precision: shortcuts, batch norm, forty rounds."""
    pytest.importorskip("torch")
    network = lifting.ResNet((1, 1, 1), 8, True)
    assert synflow.difference(network, density=0.02, rounds=40, side=8) == 0


def test_without_pytorch_the_other_rows_are_measured(in_this_process, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(synflow, "ours", lambda *_, **__: synflow.Loop(2.0, 1.0, 0.5, 3))
    monkeypatch.setattr(synflow, "limit", lambda *_, **__: synflow.Loop(1.0, 0.5, math.nan, 0))
    monkeypatch.delattr(synflow, "peer")
    later, first, _ = synflow.rows(synflow.FULL._replace(networks={"ResNet-20": synflow.TOY.networks["toy"]}), 1)
    assert later.peer is None and later.reached is None and later.limit == 0.5
    assert cells(first)[2:] == ("no PyTorch", "1 s, 100 plain gradients", "", "ratio ≤ 1.43", "not known")


def test_ways_that_do_not_agree_are_not_compared(in_this_process, monkeypatch):
    monkeypatch.setattr(jnp, "sort", lambda scores: scores)  # not in order
    with pytest.raises(ValueError, match="thresholds of toy: the results that are compared differ: "):
        list(selection.rows(selection.TOY, 1))


def test_a_measurement_has_a_process_of_its_own_without_kept_programs():
    here = "__import__('os').getpid(), __import__('jax').config.jax_enable_compilation_cache"
    process, keeps_programs = processes.fresh(functools.partial(eval, here))
    assert process != os.getpid() and not keeps_programs


def test_measurements_take_turns_and_the_least_of_each_number_counts(monkeypatch):
    taken = []

    def measure(name):
        taken.append(name)
        return Point(len(taken), -len(taken))

    monkeypatch.setattr(processes, "fresh", lambda measurement: measurement())
    both = [functools.partial(measure, name) for name in ("ours", "peer")]
    assert processes.in_turn(*both, repeats=3) == [Point(1, -5), Point(2, -6)]
    assert taken == ["ours", "peer"] * 3


def test_a_busy_machine_is_refused_unless_told_and_then_marked(monkeypatch, tmp_path, capsys, in_this_process):
    monkeypatch.setattr(command, "_WATCHED", 0.0)
    monkeypatch.setattr(machines.Watch, "busy_cores", lambda self: 1.5)
    monkeypatch.setattr(machines, "usable_cores", lambda: 2)
    monkeypatch.setattr(selection, "rows", lambda sizes, repeats: iter([PEER]))
    given = ["--only", "selection", "--quick", "--out", str(tmp_path)]
    assert command.main(given) == 2
    refusal = capsys.readouterr()
    assert "Others keep 1.5 of 2 cores busy" in refusal.err and not refusal.out and not list(tmp_path.iterdir())
    assert command.main([*given, "--busy"]) == 0
    assert "**busy, so that its ratios mean little**" in capsys.readouterr().out
    assert "yes (busy)" in (tmp_path / "README.md").read_text()
    (runs,) = results.read(tmp_path)
    assert runs["selection"].was_disturbed and runs["selection"].rows == (PEER,)


def test_work_of_others_is_told_from_our_own():
    watch, spin = machines.Watch(), "import time; end = time.time() + 1\nwhile time.time() < end: pass"
    other = subprocess.Popen([sys.executable, "-c", spin])
    time.sleep(0.5)
    with_other = watch.busy_cores()
    other.wait()  # from now on its seconds are ours
    if (without := watch.busy_cores()) is None or with_other is None:
        pytest.skip("the system does not tell")
    assert without < with_other
    assert machines.is_busy(0.3, cores=2) and not machines.is_busy(0.1, cores=2) and not machines.is_busy(None, cores=2)


def test_one_benchmark_alone_prints_its_rows_and_writes_nothing(monkeypatch, tmp_path, capsys, in_this_process):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "_WATCHED", 0.0)
    monkeypatch.setattr(selection, "rows", lambda sizes, repeats: iter([PEER._replace(note=f"{repeats} rounds")]))
    kept = [file.read_bytes() for file in sorted(page.FOLDER.iterdir())]
    assert command.alone(selection.__name__, ["--quick", "--busy", "--repeats", "2"]) == 0
    printed = capsys.readouterr().out
    assert "a sum" in printed and "0.25 = 1/4" in printed and "2 rounds" in printed
    assert [file.read_bytes() for file in sorted(page.FOLDER.iterdir())] == kept and not list(tmp_path.iterdir())


def test_the_figure_of_growth_tells_its_slopes():
    drawn = growth_figure.figure([CURVE, CURVE._replace(over="rounds")], "a footer")
    first, second = drawn.axes
    assert first.get_xlabel() == "size" and first.get_ylabel() == "milliseconds"
    told = [axis.get_legend_handles_labels()[1] for axis in (first, second)]
    assert told[0] == ["work: slope 1.00", "one gradient: slope 0.00"]
    assert told[1][1] == "as many gradients: slope 0.00"


def test_a_benchmark_that_breaks_off_keeps_its_rows_and_the_others_run(monkeypatch, capsys):
    def rows(sizes, repeats):
        yield PEER
        raise MemoryError("no room")

    monkeypatch.setattr(selection, "rows", rows)
    run = command.measure(selection, None, MACHINE, repeats=1)
    assert run.rows == (PEER,) and run.failed == "MemoryError: no room"
    assert "**It broke off: MemoryError: no room**" in str(run)


def test_rows_say_whether_their_aims_are_reached():
    assert PEER.ratio == 0.25 and PEER.reached
    assert not PEER._replace(ours=2.0).reached
    assert not ALONE.reached and ALONE._replace(ours=3.5).reached
    assert PEER._replace(peer=None).reached is None and PEER._replace(aim_ratio=None).reached is None
    assert not PEER._replace(aim=0.9).reached  # both aims count
    assert cells(PEER) == ("a sum", "1 s", "4 s, a peer", "0.5 s, one pass", "0.25 = 1/4", "ratio ≤ 0.333 = 1/3", "yes")
    assert cells(ALONE) == ("a search", "5 GB", "", "", "", "≤ 3.5 GB", "no")
    assert cells(PEER._replace(peer=None, beside="no peer"))[2:5] == ("no peer", "0.5 s, one pass", "")
    assert number(3123.4) == "3,123"


def test_results_are_kept_for_each_device_and_benchmark(tmp_path):
    first, second = run_of(PEER, ALONE), run_of(ALONE)
    results.write(tmp_path, {"first": first, "second": second})
    file = results.write(tmp_path, {"second": run_of(PEER)})  # in place of the older run
    results.write(tmp_path, {"first": run_of(PEER, machine=ACCELERATOR)})
    assert results.read(tmp_path) == [
        {"first": first, "second": run_of(PEER)},
        {"first": run_of(PEER, machine=ACCELERATOR)},
    ]
    kept = json.loads(file.read_text())["first"]
    assert kept["rows"][0]["ratio"] == 0.25 and kept["rows"][1]["reached"] is False and kept["disturbed"] is False
    assert kept["machine"]["versions"] == {"jax": "0.10.2"} and kept["machine"]["commit"] == "0123abcd"


def test_the_page_shows_devices_side_by_side_and_what_stands_in_the_way(tmp_path):
    results.write(tmp_path, {"first": run_of(PEER, ALONE)})
    results.write(tmp_path, {"first": run_of(PEER, machine=ACCELERATOR, others=1.0)})
    (tmp_path / "obstacles.toml").write_text('"a search" = """\nThe space holds\n30 vectors."""\n')
    text = page.write(tmp_path).read_text()
    assert "| work | 2 CPU cores | NVIDIA H100 80GB HBM3 |\n| --- | --- | --- |\n| a sum | 1 s (0.25 = 1/4) |" in text
    assert "| a sum | 1 s | 4 s, a peer | 0.5 s, one pass | 0.25 = 1/4 | ratio ≤ 0.333 = 1/3 | yes |" in text
    assert "- **a search.** The space holds 30 vectors.\n" in text and "- a search: of the process.\n" in text
    assert "**a sum.**" not in text
    assert "(growth-2-cpu-cores.png)" in text and (tmp_path / "growth-2-cpu-cores.png").stat().st_size > 1000
    assert "growth-nvidia" not in text
    for words in ("jax 0.10.2", "0123abcd", "load 0.1 before, 1.9 after", "1.0 cores taken by others", "a processor"):
        assert words in text


def test_the_page_is_that_of_the_results_beside_it(tmp_path):
    file = page.FOLDER / "README.md"
    kept = file.read_text()
    for other in [*page.FOLDER.glob("*.json"), *page.FOLDER.glob("*.toml")]:
        (tmp_path / other.name).write_bytes(other.read_bytes())
    assert page.write(tmp_path).read_text() == kept, "make it again: python -m experiments.benchmarks.page"
