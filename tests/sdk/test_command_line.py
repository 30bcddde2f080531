"""What the commands share: numbers within limits, and signals that let them clean up."""

import argparse
import errno
import signal

import pytest

from privdfs._command_line import explain, signals_interrupt, stopping_signals, whole_number


def test_numbers_within_limits_are_read() -> None:
    read = whole_number(1, 64)
    assert [read(text) for text in ("1", " 7 ", "64")] == [1, 7, 64]


@pytest.mark.parametrize("text", ["0", "65", "-1", "1.5", "", "many", "1e3", "9" * 5000])
def test_other_numbers_are_refused_with_their_limits(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="a whole number from 1 to 64"):
        whole_number(1, 64)(text)


@pytest.mark.usefixtures("_hangup_counts")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_every_stopping_signal_interrupts_and_the_handlers_come_back(number: signal.Signals) -> None:
    before = [signal.getsignal(one) for one in stopping_signals()]
    with pytest.raises(KeyboardInterrupt), signals_interrupt():
        signal.raise_signal(number)
    assert [signal.getsignal(one) for one in stopping_signals()] == before


@pytest.mark.usefixtures("_hangup_counts")
def test_under_nohup_a_closed_terminal_stops_nothing() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert stopping_signals() == [signal.SIGINT, signal.SIGTERM]
    with signals_interrupt():
        signal.raise_signal(signal.SIGHUP)


def test_what_cannot_be_used_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert explain("privdfs", PermissionError(errno.EACCES, "Permission denied", "some/file")) == 2
    assert capsys.readouterr().err == (
        "privdfs: 'some/file' cannot be used (Permission denied): check its permissions and the disk\n"
    )
