"""Processes that work for another one: what they return, and what is told when one ends."""

import os
import signal
import struct
import sys
import threading
import time

import pytest

from jobs.errors import FatalError, InvalidRequest
from producer.helpers import Helpers
from tests.support import eventually


def begin() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def refuse() -> None:
    raise InvalidRequest("size", "is none", "invalid_size")


def refuse_with_a_lock() -> None:
    raise ValueError(threading.Lock())


def never_begin() -> None:
    threading.Event().wait()


def die_sending() -> None:
    """Killed when half of a result is sent."""
    pipe = sys._getframe(1).f_locals["results"]
    os.write(pipe.fileno(), struct.pack("!i", 1000) + b"half")
    os.kill(os.getpid(), signal.SIGKILL)


def test_calls_return_what_they_would_here() -> None:
    with Helpers(2, begin, ahead=2) as helpers:
        futures = [helpers.submit(pow, number, 2, mod=1000) for number in range(50)]
        assert [future.result(60) for future in futures] == [n * n % 1000 for n in range(50)]
        others = {helpers.submit(os.getpid).result(60) for _ in range(4)}
        assert len(others) == 2
        assert os.getpid() not in others
        ignored = [helpers.submit(signal.getsignal, signal.SIGTERM) for _ in range(2)]
        assert all(future.result(60) is signal.SIG_IGN for future in ignored)


def test_calls_raise_what_they_would_here_and_say_where() -> None:
    with Helpers(1, begin) as helpers:
        with pytest.raises(InvalidRequest, match="size: is none") as raised:
            helpers.submit(refuse).result(60)
        assert raised.value.code == "invalid_size"
        assert "in refuse" in raised.value.__notes__[0]
        assert helpers.submit(abs, -1).result(60) == 1


def test_one_that_is_killed_as_it_sends_a_result_is_told_at_once() -> None:
    with Helpers(2, begin) as helpers:
        with pytest.raises(FatalError, match="a process that helped ended: killed by SIGKILL"):
            helpers.submit(die_sending).result(60)
        assert helpers.submit(abs, -1).result(60) == 1  # by the other one


def test_what_cannot_be_sent_back_is_told_and_ends_nothing() -> None:
    with Helpers(1, begin) as helpers:
        with pytest.raises(TypeError, match="cannot pickle"):
            helpers.submit(threading.Lock).result(60)
        with pytest.raises(RuntimeError, match="ValueError: <unlocked"):
            helpers.submit(refuse_with_a_lock).result(60)
        assert helpers.submit(abs, -1).result(60) == 1


def test_one_that_has_started_is_ready_and_the_others_are_not_waited_for() -> None:
    with Helpers(1, begin) as helpers:
        eventually(lambda: helpers.is_ready)
        assert helpers.submit(abs, -1).result(60) == 1
        assert helpers.is_ready
    with Helpers(1, never_begin) as helpers:
        assert not helpers.is_ready


def test_what_has_not_begun_at_the_end_is_cancelled() -> None:
    with Helpers(1, begin, ahead=2) as helpers:
        futures = [helpers.submit(time.sleep, 0.1) for _ in range(100)]
        futures[0].result(60)
    assert futures[-1].cancelled()


def test_ctrl_c_while_one_starts_is_not_its_own(capfd: pytest.CaptureFixture[str]) -> None:
    with Helpers(1, begin) as helpers:
        pid = helpers._all[0]._process.pid
        assert pid
        while not helpers.is_ready:
            os.kill(pid, signal.SIGINT)
        assert helpers.submit(abs, -1).result(60) == 1
    assert "KeyboardInterrupt" not in capfd.readouterr().err
