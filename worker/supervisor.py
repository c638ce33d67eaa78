"""Keeps one process a device alive: starts it pinned, starts it again when it dies, stops it.

The supervisor imports neither Celery nor torch, so it costs little and nothing in it can hang.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from jobs.fingerprints import fingerprint
from jobs.models import ModelTable
from jobs.settings import Settings
from worker.devices import Device

EXIT_FATAL = 78  # EX_CONFIG of sysexits.h: starting again cannot help
STEADY_SECONDS = 60.0  # a process that lived so long is started again without delay
LONGEST_DELAY = 30.0
KILL_SECONDS = 5.0  # on top of shutdown_timeout: to put work back and to exit

_PR_SET_PDEATHSIG = 1
_SIGNALS = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT}

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
        children = [_Child(device, self._command(device), self._environment(device))
                    for device in self.devices]  # fmt: skip
        try:
            for child in children:
                child.start()
            for name in self.required:  # while they start: hashing large weights takes time
                fingerprint(self.table, models[name])
            return self._keep(children)
        finally:
            for child in children:
                child.kill()

    def _keep(self, children: list[_Child]) -> int:
        stop_by: float | None = None
        while True:
            caught = signal.sigtimedwait(_SIGNALS, 0.5)
            if caught and caught.si_signo != signal.SIGCHLD:
                if stop_by is not None:
                    return 0
                stop_by = time.monotonic() + self.settings.shutdown_timeout + KILL_SECONDS
                for child in children:
                    child.terminate()
            for child in children:
                if child.ended() == EXIT_FATAL:
                    return EXIT_FATAL  # it has said why on stderr
                if stop_by is None:
                    child.start_when_due()
            if stop_by is not None:
                if not any(child.is_alive for child in children):
                    return 0
                if time.monotonic() > stop_by:
                    log.warning("A batch took too long: its chunk runs again elsewhere.")
                    return 0

    def _command(self, device: Device) -> list[str]:
        # -P: a folder called "worker" in the working directory is not ours.
        return [
            sys.executable, "-P", "-m", "worker.parent",
            device.name, device.kind, *self.models,
        ]  # fmt: skip

    def _environment(self, device: Device) -> dict[str, str]:
        return self.settings.environment() | {
            "CUDA_VISIBLE_DEVICES": device.visible,
            # What cuBLAS needs to give the same bits for the same input.
            "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        }


@dataclass
class _Child:
    """A device process, the delay before its next start, and when that is due."""

    device: Device
    command: list[str]
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    due: float = 0.0
    delay: float = 0.0

    @property
    def is_alive(self) -> bool:
        return self.process is not None

    def start(self) -> None:
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            self.command,
            # Threads that wait by spinning slow everything down where cores are shared.
            env={"OMP_WAIT_POLICY": "PASSIVE"} | os.environ | self.environment,
            start_new_session=True,  # Ctrl-C in a terminal is for the supervisor alone
            preexec_fn=_before_exec(),
        )

    def start_when_due(self) -> None:
        if self.process is None and time.monotonic() >= self.due:
            self.start()

    def ended(self) -> int | None:
        """The exit code, told once; sets when the process is due to start again."""
        if self.process is None or (code := self.process.poll()) is None:
            return None
        self.kill()
        lived = time.monotonic() - self.started
        self.delay = 0.0 if lived > STEADY_SECONDS else min(2 * self.delay or 1.0, LONGEST_DELAY)
        self.due = time.monotonic() + self.delay
        if code not in (0, EXIT_FATAL):
            log.error(
                "Worker %s ended (%s); it starts again in %.0f s.",
                self.device.name, code, self.delay,
            )  # fmt: skip
        return code

    def terminate(self) -> None:
        if self.process:
            self.process.terminate()

    def kill(self) -> None:
        """End the process and everything it started, now."""
        if self.process is None:
            return
        with suppress(ProcessLookupError):  # the whole group is gone already
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process = None


def _before_exec() -> Callable[[], None]:
    """What a child does before it becomes another program."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    parent = os.getpid()

    def prepare() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        if libc:
            # The kernel ends it when this process is gone, even by kill -9.
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)

    return prepare
