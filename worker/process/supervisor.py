"""Keeps one process a device alive: starts it pinned, starts it again when it dies, stops it.

The supervisor imports neither Celery nor torch, so it costs little and nothing in it can hang.
A process that ends by its own fault soon after each start is given up; the others go on.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field

from jobs import children
from jobs.children import reason
from jobs.errors import Exit
from jobs.models.fingerprints import fingerprint
from jobs.models.table import ModelTable
from jobs.settings import Settings
from worker.process.devices import Device
from worker.process.environment import environment

STEADY_SECONDS = 60.0  # a process that lived so long is started again without delay
LONGEST_DELAY = 30.0
EARLY_ENDS = 3  # so many in a row and the process is not started again
KILL_SECONDS = 5.0  # on top of shutdown_timeout: to put work back and to exit

_SIGNALS = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT}
_OWN_FAULTS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT}

log = logging.getLogger(__name__)


@dataclass
class Supervisor:
    """Device processes and their keeper.

    models: what they serve, the first of them loaded at start; required: those whose weights must
    be on this machine.
    """

    settings: Settings
    table: ModelTable
    devices: list[Device]
    models: list[str]
    required: list[str] = field(default_factory=list)

    def run(self) -> int:
        """Keep the processes alive until SIGTERM or SIGINT; returns the exit code.

        Raises:
            InvalidRequest: a model does not exist.
            FatalError: the weights of a required model are missing.
        """
        models = {name: self.table.get(name) for name in self.models}
        # Signals are waited for, never handled: nothing here runs at an arbitrary moment.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        own = self.settings.environment()
        crew = [
            _Child(device, self._command(device), environment(device, len(self.devices)) | own)
            for device in self.devices
        ]
        try:
            for child in crew:
                child.start()
            for name in self.required:  # while they start: hashing large weights takes time
                fingerprint(self.table, models[name])
            return self._keep(crew)
        finally:
            for child in crew:
                child.kill()

    def _keep(self, crew: list[_Child]) -> int:
        stop_by: float | None = None
        while True:
            caught = signal.sigtimedwait(_SIGNALS, 0.5)
            if caught and caught.si_signo != signal.SIGCHLD:
                if stop_by is not None:
                    return Exit.DONE
                stop_by = time.monotonic() + self.settings.shutdown_timeout + KILL_SECONDS
                for child in crew:
                    child.terminate()
            for child in list(crew):
                child.look()
                if stop_by is not None:
                    continue
                if child.early_ends >= EARLY_ENDS:
                    log.error(
                        "Worker %s ended %d times soon after its start; the last lines above "
                        "say why. It is not started again.",
                        child.device.name, EARLY_ENDS,
                    )  # fmt: skip
                    crew.remove(child)
                else:
                    child.start_when_due()
            if not crew:
                return Exit.HOPELESS
            if stop_by is not None:
                if not any(child.is_alive for child in crew):
                    return Exit.DONE
                if time.monotonic() > stop_by:
                    log.warning("A batch took too long: its chunk runs again elsewhere.")
                    return Exit.DONE

    def _command(self, device: Device) -> list[str]:
        # -P: a folder called "worker" in the working directory is not ours.
        return [
            sys.executable, "-P", "-m", "worker.process.parent",
            device.name, device.kind, *self.models,
        ]  # fmt: skip


@dataclass
class _Child:
    """A device process, the delay before its next start, and when that is due.

    early_ends: how often in a row it ended by itself within STEADY_SECONDS.
    """

    device: Device
    command: list[str]
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    due: float = 0.0
    delay: float = 0.0
    early_ends: int = 0

    @property
    def is_alive(self) -> bool:
        return self.process is not None

    def start(self) -> None:
        self.started = time.monotonic()
        self.process = children.start(self.command, os.environ | self.environment)
        if self.device.cores:
            # Its first instructions run anywhere; its threads and children come later.
            with suppress(ProcessLookupError):
                os.sched_setaffinity(self.process.pid, self.device.cores)

    def start_when_due(self) -> None:
        if self.process is None and time.monotonic() >= self.due:
            self.start()

    def look(self) -> None:
        """Notice if the process has ended, and set when it is due to start again."""
        if self.process is None or (code := self.process.poll()) is None:
            return
        self.kill()
        steady = time.monotonic() - self.started > STEADY_SECONDS
        itself = code > 0 or -code in _OWN_FAULTS  # else it was killed, and is not to blame
        if steady:
            self.early_ends, self.delay = 0, 0.0
        elif itself:
            self.early_ends += 1
            self.delay = min(2 * self.delay or 1.0, LONGEST_DELAY)
        else:
            self.delay = 1.0
        self.due = time.monotonic() + self.delay
        if code:
            log.error("Worker %s ended (%s).", self.device.name, reason(code))

    def terminate(self) -> None:
        if self.process:
            self.process.terminate()

    def kill(self) -> None:
        """End the process and everything it started, now."""
        if self.process:
            children.kill(self.process)
            self.process = None
