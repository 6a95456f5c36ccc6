"""Progress of a run: a bar on a terminal, one short line for each finished step elsewhere."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable, Iterator
from typing import Protocol

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.segment import Segment
from rich.table import Column
from rich.text import Text

from experiments.records.time_left import TimeLeft

__all__ = ["SILENT", "Reporter", "reporting"]


class Reporter(Protocol):
    """What a run reports its progress to."""

    def stage(self, words: str, share: float = 0.0) -> None:
        """Say what is being computed now, and which share of this step is finished."""

    def advance(self, figures: str) -> None:
        """Say that one step is finished, with its figures."""

    def say(self, words: str) -> None:
        """Say a sentence that stays."""


class _Silent:
    def stage(self, words: str, share: float = 0.0) -> None:
        pass

    def advance(self, figures: str) -> None:
        pass

    def say(self, words: str) -> None:
        pass


SILENT: Reporter = _Silent()
"""Says nothing: for a process whose results another one shows."""


class _LeftColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        seconds = task.fields["left"].seconds()
        words = "-:--:--" if seconds is None else str(datetime.timedelta(seconds=round(seconds)))
        return Text(words, style="progress.remaining")


class _Bar:
    def __init__(self, progress: Progress, total: int, done: int, drawn_again: Callable[[], None]) -> None:
        self._progress = progress
        self._drawn_again = drawn_again
        self._left = TimeLeft(total - done)
        self._done = done
        self._task = progress.add_task("", total=total, completed=done, figures="", left=self._left)

    def stage(self, words: str, share: float = 0.0) -> None:
        self._progress.update(self._task, description=words, completed=self._done + share)

    def advance(self, figures: str) -> None:
        self._done += 1
        self._left.finished()
        self._progress.update(self._task, completed=self._done, figures=figures)
        self._drawn_again()

    def say(self, words: str) -> None:
        self._progress.console.print(words, highlight=False, markup=False, soft_wrap=True)


class _Stack:
    """A bar, and below it what `below()` returns: the bar moves all the time, `below` is called and laid out anew only
    by `draw_again` and for another width."""

    def __init__(self, progress: Progress, below: Callable[[], RenderableType]) -> None:
        self._progress, self._below = progress, below
        self._lines: list[list[Segment]] | None = None
        self._width = 0

    def draw_again(self) -> None:
        self._lines = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._progress
        lines = self._lines
        if lines is None or self._width != options.max_width:
            lines = console.render_lines(self._below(), options.update(height=None), pad=False)
            self._lines, self._width = lines, options.max_width
        for line in lines:
            yield from line
            yield Segment.line()


class _Lines:
    def __init__(self, console: Console, total: int, done: int) -> None:
        self._console = console
        self._total = total
        self._done = done

    def stage(self, words: str, share: float = 0.0) -> None:
        pass  # a log has one line for each finished step, not one for each stage

    def advance(self, figures: str) -> None:
        self._done += 1
        self._console.print(f"[{self._done}/{self._total}] {figures}", highlight=False, markup=False, soft_wrap=True)

    def say(self, words: str) -> None:
        self._console.print(words, highlight=False, markup=False, soft_wrap=True)


@contextlib.contextmanager
def reporting(
    console: Console, *, total: int, done: int, below: Callable[[], RenderableType] | None = None
) -> Iterator[Reporter]:
    """A reporter for `total` steps, of which `done` are finished already. A terminal shows `below()` under the bar.

    It is called once at the start and once after each finished step.
    """
    if not console.is_terminal:
        yield _Lines(console, total, done)
        return
    # on a narrow terminal words are cut short, numbers never
    whole, words = Column(min_width=7, no_wrap=True), Column(ratio=1, no_wrap=True, overflow="ellipsis")
    columns = (
        BarColumn(bar_width=12),
        MofNCompleteColumn(table_column=whole.copy()),
        TimeElapsedColumn(table_column=whole.copy()),
        TextColumn("left", table_column=Column(no_wrap=True)),
        _LeftColumn(whole.copy()),
        TextColumn("[bold]{task.description}", table_column=words.copy()),
        TextColumn("{task.fields[figures]}", table_column=words.copy()),
    )
    progress = Progress(*columns, console=console, expand=True)
    shown = _Stack(progress, below or (lambda: Text("", end="")))
    # what is below the bar is printed again at the end, since the terminal may have too few lines for it
    with Live(shown, console=console, refresh_per_second=4, transient=below is not None):
        yield _Bar(progress, total, done, shown.draw_again)
