"""A first signal is a wish, a later one an order, and several at once are one; real signals, real broken pipes."""

import os
import signal
import subprocess
import sys

import pytest

from flow_grpo.training import interrupt
from flow_grpo.training.interrupt import LastingStream, StopRequest

NUMBERS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def _signals_of_a_foreground_job():
    """A shell's background job starts with SIGINT ignored, a job under nohup with SIGHUP."""
    before = {number: signal.getsignal(number) for number in NUMBERS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", NUMBERS)
def test_the_first_signal_is_noted_and_said_and_nothing_else_happens(number, capsys):
    with StopRequest() as stop:
        assert not stop.requested
        signal.raise_signal(number)
        assert stop.requested
        stop._speaker.join()
    assert signal.Signals(number).name in capsys.readouterr().out


def test_a_signal_is_said_even_if_the_run_ends_before_the_speaker_looks(capsys):
    written = []
    stop = StopRequest(at_once=lambda: written.append("snapshot"))
    stop._note(signal.SIGTERM, None)
    stop._left.set()
    stop._speak()
    assert "SIGTERM: saving and stopping" in capsys.readouterr().out
    assert written == []  # the loop has written its checkpoint itself


@pytest.mark.parametrize("again", NUMBERS)
def test_a_signal_that_a_launcher_passes_on_counts_once(again, monkeypatch):
    monkeypatch.setattr(interrupt, "ONE_SIGNAL_SECONDS", 600.0)  # this process may stand still for two
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
        for _ in range(3):
            signal.raise_signal(again)
        assert stop.requested


def test_a_later_signal_acts_as_it_always_does(monkeypatch):
    monkeypatch.setattr(interrupt, "ONE_SIGNAL_SECONDS", -1.0)  # a clock may show the same time twice
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert stop.requested


def test_under_nohup_a_closed_terminal_stops_nothing():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGHUP)
        assert not stop.requested


@pytest.mark.parametrize("signals", [[], [signal.SIGTERM]])
def test_the_handlers_of_before_are_back_afterwards(signals):
    before = [signal.getsignal(number) for number in NUMBERS]
    with StopRequest():
        assert all(signal.getsignal(number) != handler for number, handler in zip(NUMBERS, before, strict=True))
        for number in signals:
            signal.raise_signal(number)
    assert [signal.getsignal(number) for number in NUMBERS] == before


def test_the_handlers_of_before_are_back_after_an_error():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError), StopRequest():
        raise ValueError
    assert signal.getsignal(signal.SIGTERM) == before


def test_printing_where_nobody_reads_any_more_loses_the_words_and_nothing_else():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", buffering=1) as broken:
        stream = LastingStream(broken)
        for _ in range(3):
            print("words", file=stream, flush=True)
        assert stream.fileno() == writer and not stream.isatty()


def test_a_process_whose_log_has_ended_exits_as_if_it_had_not():
    """stdout and stderr both lead into `| tee`, which a Ctrl-C ends first."""
    lines = [
        "import signal, sys",
        "from flow_grpo.training.interrupt import StopRequest, keep_printing",
        "keep_printing()",
        "sys.stdin.read()",  # until the reader has gone
        "with StopRequest() as stop:",
        "    signal.raise_signal(signal.SIGINT)",
        "    stop._speaker.join()",
        "    print('saved', flush=True), print('bar', file=sys.stderr)",
    ]
    process = subprocess.Popen(
        [sys.executable, "-c", "\n".join(lines)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"PYTHONPATH": os.getcwd()},
    )
    process.stdout.close()
    process.stdin.close()
    assert process.wait() == 0
