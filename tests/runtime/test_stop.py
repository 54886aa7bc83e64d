"""A request to stop: a signal sets it, and afterwards the handlers are those from before."""

import signal

import pytest

from keel_jax.runtime import exit_codes, stop


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_to_stop(number, capsys):
    with stop.StopRequest() as request:
        assert not request.asked()
        signal.raise_signal(number)
        assert request.asked() and request.asked()
    assert number.name in capsys.readouterr().err


def test_an_echo_is_the_same_request_and_a_second_one_is_not(monkeypatch):
    """A supervisor passes on what its whole process group was sent."""
    raised = []
    with stop.StopRequest() as request:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert request.asked()
        request._asked_at -= 2
        monkeypatch.setattr(stop.signal, "raise_signal", raised.append)
        request._handle(signal.SIGTERM, None)
    assert raised == [signal.SIGTERM]


def test_once_all_is_saved_a_signal_ends_with_the_runs_code(monkeypatch):
    """Also one that would pass for an echo: there is nothing left to wait for."""
    left = []
    monkeypatch.setattr(stop.watchdog, "leave", left.append)
    monkeypatch.setattr(stop.signal, "signal", lambda *_: None)
    request = stop.StopRequest()
    request._handle(signal.SIGINT, None)
    request.saved(exit_codes.PREEMPTED)
    monkeypatch.setattr(stop.signal, "raise_signal", lambda _: None)
    request._handle(signal.SIGINT, None)
    assert left == [exit_codes.PREEMPTED]


@pytest.mark.parametrize("fails", [False, True])
def test_handlers_are_restored_whatever_happens(fails):
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    try:
        with stop.StopRequest():
            assert all(signal.getsignal(n) not in before for n in numbers)
            if fails:
                raise RuntimeError
    except RuntimeError:
        pass
    assert [signal.getsignal(number) for number in numbers] == before
