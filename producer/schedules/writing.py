"""Whether a file is still being written, as far as the kernel knows."""

from __future__ import annotations

import fcntl
import os
import signal


def is_open_for_writing(path: str) -> bool:
    """Whether a process of this machine is writing a file, as cp does; False if nobody can tell.

    The kernel grants a read lease only on a file that no one has open for writing (fcntl(2)).
    """
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        # Whoever opens it in the next microsecond is not to end this process: SIGIO would.
        fcntl.fcntl(file, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return True
    except OSError:  # another's file, or a file system without leases
        return False
    finally:
        os.close(file)
    return False
