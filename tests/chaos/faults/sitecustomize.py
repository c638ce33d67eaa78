"""Faults of a worker's processes, by environment: Python imports this file at every start.

CHAOS_START   the kind of process that dies at its start: "parent" or "pool"; with a device behind
              it ("parent cpu1") only that one's
CHAOS_ACK     a path: what its file says ("kill" or "hold") happens once a chunk is stored and
              before its message is acknowledged
CHAOS_POISON  "<seed> <how>": what the null renderer does about that request: crash, eat or hang
CHAOS_CLOCK   seconds that the clock is ahead
CHAOS_DISK    a path: as long as something is there, the disk is full
"""

import errno
import os
import resource
import signal
import sys
import time

words = " ".join(sys.orig_argv)
is_pool = "spawn_main" in words
is_parent = "worker.process.parent" in words

kind, _, device = os.environ.get("CHAOS_START", "").partition(" ")
if device in words and ((is_parent and kind == "parent") or (is_pool and kind == "pool")):
    sys.stderr.write("the driver of this device is broken\n")
    sys.stderr.flush()
    os.kill(os.getpid(), signal.SIGSEGV)

if "CHAOS_CLOCK" in os.environ:
    clock = time.time
    time.time = lambda: clock() + float(os.environ["CHAOS_CLOCK"])

if is_pool and "CHAOS_POISON" in os.environ:
    from worker.null import NullRenderer

    seed, how = os.environ["CHAOS_POISON"].split()
    draw = NullRenderer.render

    def render(self, batch, pause):
        if any(one.request.seed == int(seed) for one in batch):
            if how == "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            # Another thread may be the one to die of the signal: this one must do no more either.
            if how in ("crash", "hang"):
                while True:
                    time.sleep(1)
            resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
            hoard = []
            while True:
                hoard.append(bytearray(2**26))
        return draw(self, batch, pause)

    NullRenderer.render = render

if is_pool and "CHAOS_DISK" in os.environ:
    replace = os.replace

    def full(source, target):
        if os.path.exists(os.environ["CHAOS_DISK"]):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), target)
        replace(source, target)

    os.replace = full

if is_pool and "CHAOS_ACK" in os.environ:
    from pathlib import Path

    from worker.chunks import Work

    store = Work.store_done
    order = Path(os.environ["CHAOS_ACK"])

    def stored(self, records):
        store(self, records)
        if order.exists() and order.read_text() == "kill":
            order.unlink()
            os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
        if order.exists():
            order.write_text("held")
        while order.exists():
            time.sleep(0.02)

    Work.store_done = stored
