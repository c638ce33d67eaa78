"""Processes that end with whoever started them."""

from __future__ import annotations

import subprocess
import sys

PARENT = """
import os
from multiprocessing import get_context
from jobs.children import die_with_parent

told = os.dup(0)

def live():
    os.write(1, b"begun")
    os.read(told, 1)
    die_with_parent()
    os.write(1, b"alive")

get_context("fork").Process(target=live).start()
"""


def test_a_child_whose_parent_was_killed_before_it_began_ends() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdin
        assert parent.stdout
        assert parent.stdout.read(5) == b"begun"
        parent.kill()
        parent.wait()
        parent.stdin.write(b"x")
        parent.stdin.flush()
        assert parent.stdout.read() == b""
