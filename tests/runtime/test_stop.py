"""A request to stop: a signal sets it, and afterwards the handlers are those from before."""

import signal

import pytest

from keel_jax.runtime import stop


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_to_stop(number, capsys):
    with stop.StopRequest() as request:
        assert not request.asked()
        signal.raise_signal(number)
        assert request.asked() and request.asked()
    assert number.name in capsys.readouterr().err


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
