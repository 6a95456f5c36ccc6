"""Reliability of studies: they are killed at random moments, on disks that fill and in folders that turn read-only.

A small study is computed once by one process that nothing disturbs. Then it is run again and again by each of the
engines (one process, workers, Ray), and SIGKILL ends the process that holds the folder, or one of its workers, at a
random moment; the same command is then given again, until the study is whole. At every moment each trial that was
finished must still be there; at the end the trials and the pictures must be the same, to the byte but for when and by
what they were computed. Run it as `make chaos`, or

    python tests/chaos.py [--kills N] [--seed SEED] [--engine NAME]

It prints what it did and ends with status 1 where a trial was lost or differs.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

ROOT = Path(__file__).parents[1]
CONFIG = """
data = ["digits"]
method = ["random", "magnitude", "snip"]
density = [0.5, 0.2]
seeds = 2
train_images = 200
test_images = 100
[[model]]
name = "small"
network = "lenet_300_100"
factor = 0.03
[train]
epochs = 9
batch_size = 50
checkpoint_every = 3
[measure]
rounds = 2
score_per_class = 1
kernel_pictures = true
changes = false
"""
ENGINES = {"one process": (), "two workers": ("--workers", "2"), "Ray": ("--ray", "local")}
SHARES = {"one process": 0.4, "two workers": 0.4, "Ray": 0.2}
"""Of the kills, those of each engine."""
_WORKERS = ("spawn_main", "ray::_compute", "ray::IDLE")
"""What stands in the command lines of workers. (Ray ends with its other processes.)"""
_BLOCK = 4096
"""Bytes that a disk gives to a file at a time."""
_ROOM = 0.9
"""Of what the study takes, what the small disk has."""
_LATEST = 0.8
"""The latest moment of a kill, in times of the undisturbed study: some studies must come to their end in between."""
PATIENCE = 600
"""Seconds after which a process counts as hanging."""


class Wrong(Exception):
    """A trial was lost, or is not what it should be."""


class Place(NamedTuple):
    """Where the study is run: the folder of all, and what one undisturbed process finds and how long it takes."""

    root: Path
    trials: list[str]
    pictures: dict[str, bytes]
    seconds: float

    def begun(self, out: Path, engine: str, *before: str) -> subprocess.Popen:
        """The command that computes the study into a folder, after the words `before`."""
        environment = os.environ | {"XDG_CACHE_HOME": str(self.root / "cache")}
        command = [*before, sys.executable, "-m", "experiments", "sweep", str(self.root / "chaos.toml")]
        options = ["--out", str(out), "--data-dir", str(self.root / "data"), *ENGINES[engine]]
        with (self.root / "log").open("wb") as log:
            return subprocess.Popen([*command, *options], cwd=ROOT, env=environment, stdout=log, stderr=log)

    def log(self) -> str:
        """What the last command said."""
        return (self.root / "log").read_text(errors="replace")

    def check_whole(self, out: Path) -> None:
        """Raise Wrong where the study in a folder is not the undisturbed one."""
        if trials_of(out) != self.trials:
            raise Wrong(f"{out} has {len(trials_of(out))} trials that are not the {len(self.trials)} undisturbed ones.")
        if pictures_of(out) != self.pictures:
            raise Wrong(f"{out} has other pictures of kernels.")


def say(words: str) -> None:
    """A line of what happened, at once."""
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


def lines_of(out: Path) -> list[bytes]:
    """The whole lines of results.jsonl."""
    file = out / "results.jsonl"
    return file.read_bytes().split(b"\n")[:-1] if file.exists() else []


def has_half_a_line(out: Path) -> bool:
    """Whether results.jsonl ends in the middle of a line."""
    file = out / "results.jsonl"
    return file.exists() and not file.read_bytes().endswith(b"\n")


def trials_of(out: Path) -> list[str]:
    """The trials of a folder in order, without when and by what they were computed."""
    trials = [json.loads(line) for line in lines_of(out)]
    return sorted(json.dumps({key: value for key, value in trial.items() if key != "made"}) for trial in trials)


def pictures_of(out: Path) -> dict[str, bytes]:
    """The files of pictures by their names."""
    return {path.name: path.read_bytes() for path in (out / "kernels").glob("*.npz")}


def undisturbed(root: Path) -> Place:
    """The place, with what one process finds that nothing disturbs; its programs are compiled then."""
    (root / "chaos.toml").write_text(CONFIG)
    (root / "data").mkdir()
    place = Place(root, [], {}, 0.0)
    for out in (root / "compiling", root / "undisturbed"):
        begin = time.monotonic()
        if place.begun(out, "one process").wait(PATIENCE):
            raise Wrong(f"The undisturbed study fails: {place.log()}")
    out = root / "undisturbed"
    return Place(root, trials_of(out), pictures_of(out), time.monotonic() - begin)


def killed(place: Place, engine: str, kills: int, chance: random.Random) -> collections.Counter[str]:
    """Kill the study of an engine so often; gives how often what was killed, and how many studies became whole."""
    told: collections.Counter[str] = collections.Counter()
    number = 0
    while told["driver"] + told["worker"] < kills:
        number += 1
        out = place.root / f"{engine}-{number}"
        while True:
            before = lines_of(out)
            job = place.begun(out, engine)
            moment = chance.uniform(0.0, _LATEST * place.seconds)
            with contextlib.suppress(subprocess.TimeoutExpired):
                job.wait(moment)
            left = told["driver"] + told["worker"] < kills
            if job.poll() is None and left:
                told[kill_one(job, engine, chance)] += 1
            status = job.wait(PATIENCE)
            after = lines_of(out)
            if after[: len(before)] != before:
                raise Wrong(f"{out} had {len(before)} finished trials, and not all of them are there: {place.log()}")
            told["half a line"] += has_half_a_line(out)
            if status == 0:
                break
            if status > 0:
                raise Wrong(f"The command ends with status {status}: {place.log()}")
        place.check_whole(out)
        told["studies"] += 1
        shutil.rmtree(out)
        if told["studies"] % 5 == 0:
            say(f"  {engine}: {told['driver'] + told['worker']} kills so far")
    return told


def kill_one(job: subprocess.Popen, engine: str, chance: random.Random) -> str:
    """Kill the process that holds the folder or, as often, a worker if there is one; says which."""
    with contextlib.suppress(psutil.Error):
        children = psutil.Process(job.pid).children(recursive=True)
        commands = {child: " ".join(child.cmdline()) for child in children}
        workers = [child for child, line in commands.items() if any(name in line for name in _WORKERS)]
        if workers and chance.random() < 0.5:
            chance.choice(workers).kill()
            return "worker"
    job.kill()
    return "driver"


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """A disk of so many bytes at a folder."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def full_disk(place: Place, engine: str) -> str:
    """A disk that fills in the middle and is then made larger; gives what happened."""
    disk = place.root / f"disk of {engine}"
    files = [path for path in (place.root / "undisturbed").rglob("*") if path.is_file()]
    whole = sum(-(-path.stat().st_size // _BLOCK) * _BLOCK for path in files)
    with small_disk(disk, int(_ROOM * whole)):
        out = disk / "out"
        status = place.begun(out, engine).wait(PATIENCE)
        said, before = place.log().strip().splitlines()[-1], lines_of(out)
        if status != 2 or "No space left on device" not in said:
            raise Wrong(f"On a full disk the command ends with status {status}: {place.log()}")
        subprocess.run(["mount", "-o", f"remount,size={4 * whole}", str(disk)], check=True)
        resumed(place, out, engine, before)
    return f"{len(before)} of {len(place.trials)} trials were kept, then: {said.replace(str(place.root), '…')}"


def read_only(place: Place, engine: str) -> str:
    """A folder that turns read-only in the middle, and is made writable again; gives what happened."""
    out = place.root / f"read-only of {engine}"
    # what root may do to files that forbid it is taken from the command
    job = place.begun(out, engine, *(["setpriv", "--bounding-set=-dac_override"] if os.geteuid() == 0 else []))
    while len(lines_of(out)) < 4 and job.poll() is None:
        time.sleep(0.01)
    for path in (out, *out.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    status = job.wait(PATIENCE)
    said, before = place.log().strip().splitlines()[-1], lines_of(out)
    if status != 2 or "Permission denied" not in said:
        raise Wrong(f"In a read-only folder the command ends with status {status}: {place.log()}")
    for path in (out, *out.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    resumed(place, out, engine, before)
    return f"{len(before)} of {len(place.trials)} trials were kept, then: {said.replace(str(place.root), '…')}"


def resumed(place: Place, out: Path, engine: str, before: list[bytes]) -> None:
    """Give the same command again: it must go on from what was kept, and make the study whole."""
    if place.begun(out, engine).wait(PATIENCE):
        raise Wrong(f"The same command does not go on: {place.log()}")
    if lines_of(out)[: len(before)] != before:
        raise Wrong(f"Finished trials of {out} were lost.")
    place.check_whole(out)


def main() -> int:
    """Do it all; gives the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=100, help="how many in all")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--engine", choices=ENGINES, help="this one alone, with its part of the kills")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as root:
        try:
            place = undisturbed(Path(root))
            say(f"{len(place.trials)} trials, {place.seconds:.1f} s undisturbed")
            for engine, share in SHARES.items():
                if options.engine not in (None, engine):
                    continue
                begin = time.monotonic()
                told = killed(place, engine, round(share * options.kills), chance)
                say(
                    f"{engine}: {told['driver'] + told['worker']} kills, {told['worker']} of them of workers; "
                    f"{told['half a line']} left half a line; no finished trial lost; {told['studies']} studies became "
                    f"whole, equal to the undisturbed one; {time.monotonic() - begin:.0f} s",
                )
            for engine in ("one process", "two workers"):
                say(f"a folder that turns read-only, {engine}: {read_only(place, engine)}")
                try:
                    say(f"a disk that fills, {engine}: {full_disk(place, engine)}")
                except subprocess.CalledProcessError as error:
                    say(f"a disk that fills, {engine}: left out, since none can be mounted ({error})")
        except Wrong as error:
            say(f"WRONG: {error}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
