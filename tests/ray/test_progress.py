"""The progress bar of a terminal."""

import fcntl
import logging
import os
import pty
import struct
import sys
import termios

import pytest

from raysound.distributed.cluster.progress import progress_bar


def test_a_terminal_shows_a_bar_with_log_lines_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = pty.openpty()
    fcntl.ioctl(writing, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with os.fdopen(writing, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with progress_bar("real", 4, "clips") as bar:
            bar.update(3)
            logging.getLogger("raysound").warning("a line")
            bar.refresh()
            assert not bar.disable
        shown = os.read(reading, 65536).decode()
    os.close(reading)

    assert "real:   0%" in shown
    assert "3/4" in shown


def test_there_is_no_bar_without_a_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    with progress_bar("real", 4, "clips") as bar:
        bar.update(3)
        assert bar.disable

    assert capfd.readouterr() == ("", "")
