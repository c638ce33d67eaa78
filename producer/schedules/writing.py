"""Whether a file is whole, as far as the kernel knows."""

from __future__ import annotations

import fcntl
import os
import signal
import stat


def is_whole(path: str) -> bool:
    """Whether it is a file (no link, no pipe) that no process of this machine is writing, as cp
    does. Of another user's file, and on file systems without leases, nobody can tell: it is.

    The kernel grants a read lease only on a file that no one has open for writing (fcntl(2)).
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            return False
        # Whoever opens it in the next microsecond is not to end this process: SIGIO would.
        fcntl.fcntl(file, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        os.close(file)
    return True
