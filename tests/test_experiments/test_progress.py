import io

from rich.console import Console
from rich.table import Table

from experiments.records import progress


def console(**options):
    return Console(file=io.StringIO(), width=100, **options)


def test_what_is_below_the_bar_is_made_once_for_each_finished_step_however_often_it_is_drawn():
    made, drawn = [], console(force_terminal=True)

    def below():
        made.append(len(made))
        table = Table("best so far")
        table.add_row(f"after step {made[-1]}")
        return table

    with progress.reporting(drawn, total=3, done=0, below=below) as reporter:
        stack = progress._Stack(reporter._progress, below)
        for _ in range(20):
            drawn.print(stack)
        assert made == [*range(len(made))] and len(made) <= 2
        count = len(made)
        stack.draw_again()
        for _ in range(20):
            drawn.print(stack)
        assert len(made) == count + 1
    assert f"after step {count}" in drawn.file.getvalue()


def test_elsewhere_each_finished_step_is_a_line():
    log = console()
    with progress.reporting(log, total=3, done=1) as reporter:
        reporter.stage("scores")
        reporter.advance("digits fc snip 0.1: accuracy 90.0%")
        reporter.say("Out of memory.")
    assert log.file.getvalue() == "[2/3] digits fc snip 0.1: accuracy 90.0%\nOut of memory.\n"
