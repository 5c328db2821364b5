"""A first signal is a wish, a second one an order; real signals to this very process."""

import signal

import pytest

from flow_grpo.training.interrupt import StopRequest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_nothing_else_happens(number, capsys):
    with StopRequest() as stop:
        assert not stop.requested
        signal.raise_signal(number)
        assert stop.requested
    assert signal.Signals(number).name in capsys.readouterr().out


def test_the_second_signal_acts_as_it_always_does():
    # A shell's background job starts with SIGINT ignored; here it is what it is in the foreground.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert stop.requested
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("signals", [[], [signal.SIGTERM]])
def test_the_handlers_of_before_are_back_afterwards(signals):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with StopRequest():
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] != before
        for number in signals:
            signal.raise_signal(number)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_the_handlers_of_before_are_back_after_an_error():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError), StopRequest():
        raise ValueError
    assert signal.getsignal(signal.SIGTERM) == before
