import os
import signal

import pytest

from transformer_jax.training.progress import Interrupted, Stop, stop_on_signals


@pytest.fixture
def handlers():
    """A shell's background job starts with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_until_all_is_saved(number, handlers, capsys):
    with stop_on_signals() as stop:
        stop.unsaved()
        assert stop.signal is None
        os.kill(os.getpid(), number)
        assert stop.signal == number
        assert "Stopping after this step" in capsys.readouterr().err
        os.kill(os.getpid(), signal.SIGTERM)  # as impatient schedulers do
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Interrupted):
            stop.saved(3)
        assert stop.saved_step == 3
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_at_once_what_has_nothing_to_save(number, handlers):
    with stop_on_signals() as stop:
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), number)
        with pytest.raises(Interrupted):
            stop.unsaved()


def test_a_signal_is_postponed_to_the_end_of_what_would_not_survive_it(handlers):
    with stop_on_signals() as stop:
        reached = []

        def survives():
            with stop.postponed(), stop.postponed():
                os.kill(os.getpid(), signal.SIGTERM)
                reached.append(True)

        with pytest.raises(Interrupted):
            survives()
        assert reached
    with stop_on_signals() as stop:
        stop.unsaved()
        with stop.postponed():
            os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted):
            stop.saved(2)


def test_where_exceptions_are_swallowed_a_signal_is_noted(handlers):
    """pytest would tell of one that is raised there."""

    class Finalised:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)

    with stop_on_signals() as stop:
        Finalised()
        assert stop.signal == signal.SIGTERM
        with pytest.raises(Interrupted):
            stop.unsaved()


def test_what_an_interruption_becomes_on_its_way_is_explained_by_it():
    stop = Stop()
    assert stop.explains(Interrupted())
    assert not stop.explains(ValueError())
    stop.unsaved()
    stop.agree(signal.SIGTERM)
    assert not stop.explains(ValueError()), "something is lost"
    with pytest.raises(Interrupted):
        stop.saved(1)
    assert stop.explains(ValueError())
