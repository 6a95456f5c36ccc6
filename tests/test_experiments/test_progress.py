import io

from rich.console import Console
from rich.progress import Progress

from experiments.records import progress


def console(**options):
    return Console(file=io.StringIO(), width=100, **options)


def test_what_is_below_the_bar_is_made_once_for_each_finished_step_however_often_it_is_drawn():
    calls, drawn = [0], console(force_terminal=True, highlight=False)

    def below():
        calls[0] += 1
        return f"best after step {calls[0] - 1}"

    stack = progress._Stack(Progress(), below)
    bar = progress._Bar(stack._progress, total=3, done=0, drawn_again=stack.draw_again)
    for step in range(3):
        for _ in range(20):
            bar.stage("training", 0.5)
            drawn.print(stack)
        assert calls == [step + 1] and drawn.file.getvalue().count(f"best after step {step}") == 20
        bar.advance("accuracy 90.0%")


def test_a_terminal_shows_the_bar_what_is_below_it_and_what_is_said():
    terminal = console(force_terminal=True)
    with progress.reporting(terminal, total=3, done=1, below=lambda: "the best so far") as reporter:
        reporter.stage("scores")
        reporter.advance("accuracy 90.0%")
        reporter.say("Out of memory.")
    assert all(words in terminal.file.getvalue() for words in ("2/3", "the best so far", "Out of memory."))


def test_elsewhere_each_finished_step_is_a_line():
    log = console()
    with progress.reporting(log, total=3, done=1) as reporter:
        reporter.stage("scores")
        reporter.advance("digits fc snip 0.1: accuracy 90.0%")
        reporter.say("Out of memory.")
    assert log.file.getvalue() == "[2/3] digits fc snip 0.1: accuracy 90.0%\nOut of memory.\n"
