import io

import pytest

from vfejax.runs.progress import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    """Seconds that a test decides."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def run(total, seconds_per_step, stream, *, start=0, chunk=1, **options):
    clock = Clock()
    with progress(total, stream=stream, clock=clock, start=start, **options) as update:
        for step in range(start + chunk, total + 1, chunk):
            clock.now += chunk * seconds_per_step
            update(step, {"energy": 1.0 / step})
    return stream.getvalue()


def test_lines_show_everything():
    lines = run(100, 1.0, io.StringIO(), description="simulate").splitlines()
    assert lines[0] == "simulate 1/100 (1 %) energy 1"
    assert lines[1] == "simulate 7/100 (7 %) energy 0.142857  1 steps/s  0:01:33 left"
    assert lines[-1] == "simulate 100/100 (100 %) energy 0.01  1 steps/s  0:00:00 left"


@pytest.mark.parametrize("total", [1, 2, 19, 20, 21, 100, 12345])
@pytest.mark.parametrize("seconds", [0.0, 1e-3, 1.0, 1e4])
def test_at_most_twenty_lines_with_first_and_last(total, seconds):
    lines = run(total, seconds, io.StringIO()).splitlines()
    assert 1 <= len(lines) <= 20
    assert lines[0].startswith(f"1/{total} ")
    assert lines[-1].startswith(f"{total}/{total} (100 %)")


def test_at_most_twenty_lines_when_the_start_is_reported():
    stream, clock = io.StringIO(), Clock()
    with progress(38, stream=stream, clock=clock) as update:
        for step in range(39):
            clock.now += 10.0
            update(step, {})
    assert len(stream.getvalue().splitlines()) == 20


def test_fast_runs_print_few_lines():
    assert len(run(1000, 1e-3, io.StringIO()).splitlines()) == 2
    assert (
        len(run(1000, 1e-2, io.StringIO()).splitlines()) == 6
    )  # 10 s, a line every 2 s, and the last


def test_last_step_is_reported_once():
    stream = io.StringIO()
    with progress(3, stream=stream, clock=Clock()) as update:
        for step in (3, 3, 3):
            update(step, {})
    assert stream.getvalue() == "3/3 (100 %)\n"


def test_rate_leaves_out_what_came_before_the_first_report():
    stream, clock = io.StringIO(), Clock()
    with progress(1000, stream=stream, clock=clock, start=500, unit="batches") as update:
        clock.now += 60.0  # compilation
        update(600, {"loss": 2, "accuracy": 0.5})
        clock.now += 50.0
        update(700, {"loss": 1, "accuracy": 0.75})
    lines = stream.getvalue().splitlines()
    assert lines[0] == "600/1000 (60 %) loss 2  accuracy 0.5"
    assert lines[1] == "700/1000 (70 %) loss 1  accuracy 0.75  2 batches/s  0:02:30 left"


def test_rate_counts_the_units_that_steps_are_made_of():
    stream, clock = io.StringIO(), Clock()
    with progress(20, stream=stream, clock=clock, unit="tokens", units_per_step=768) as update:
        update(10, {})
        clock.now += 5.0
        update(20, {})
    assert stream.getvalue().splitlines()[1] == "20/20 (100 %) 1536 tokens/s  0:00:00 left"


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_quiet_shows_nothing(stream):
    assert run(100, 1.0, stream(), quiet=True) == ""


def test_terminal_gets_a_bar(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    shown = run(100, 1.0, Terminal(), description="[simulate]", chunk=10)
    assert "[simulate]" in shown
    assert "compiling" in shown
    assert "energy 0.01  1 steps/s  0:00:00 left" in shown
    assert "100%" in shown
    assert "\x1b[" in shown


def test_dumb_terminal_gets_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    assert (
        run(2, 1.0, Terminal()).splitlines()[-1]
        == "2/2 (100 %) energy 0.5  1 steps/s  0:00:00 left"
    )


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_exceptions_pass(stream, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")

    def interrupted():
        with progress(10, stream=stream()) as update:
            update(1, {"energy": float("nan")})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()


def test_standard_error_is_the_default(capsys):
    with progress(1) as update:
        update(1, {"energy": 3.0})
    assert capsys.readouterr() == ("", "1/1 (100 %) energy 3\n")


def test_a_narrow_terminal_still_shows_the_share(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "20")
    assert "100%" in run(100, 1.0, Terminal(), description="train", chunk=10)


def test_a_run_does_not_end_because_its_progress_cannot_be_shown():
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(28, "No space left on device")

    with progress(10, stream=Full()) as update:
        update(10, {"energy": 1.0})
