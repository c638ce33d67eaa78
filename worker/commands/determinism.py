"""`imagemill check-determinism`: whether bytes repeat on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import orjson
import typer
from pydantic import TypeAdapter

from jobs import children
from jobs.commands import Command
from jobs.errors import Exit, FatalError
from jobs.models.table import load_models
from jobs.settings import load_settings
from worker.commands import options
from worker.commands.ending import explained
from worker.commands.trials import STEPS, Comparison, Findings, Trial, compare
from worker.process.devices import Device, choose_devices
from worker.process.environment import environment

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

_FINDINGS = TypeAdapter(Findings)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found: with compile off and on. changed: the images of the one beside the other's,
    which may differ; None if one of them has none."""

    off: Findings
    on: Findings
    changed: Comparison | None

    @property
    def same(self) -> bool:
        return not any(one.different for f in (self.off, self.on) for one in f.ways.values())


@app.command(cls=Command)
def check(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model, or MODEL:ADAPTER.")],
    devices: options.OneDevice = "auto",
    slots: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Of each call.", show_default="its batch_width"),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1, max=50, metavar="N", help="Of each image.", show_default=f"at most {STEPS}"
        ),
    ] = None,
    models_file: options.ModelsFile = None,
    as_json: options.Json = False,
) -> None:
    """Render the same requests in several ways on this machine's device, and compare the bytes.

    Again, in another order, among others, padded, in another process; with compile off and on.
    Exits with 1 if any bytes differ.
    """
    with explained():
        settings = load_settings(models=models_file)
        table = load_models(settings.models)
        compiles = table.get(table.route(model).model).options.compile
        device = choose_devices(devices)[0]
        file = str(settings.models) if settings.models else None
        with tempfile.TemporaryDirectory(prefix="imagemill-determinism-") as folder:
            asked = (slots or 0, steps or 0)
            trials = [
                Trial(file, model, device.kind, *asked, compiled, f"{folder}/{compiled}.npy")
                for compiled in (False, True)
            ]
            with ThreadPoolExecutor(_at_once(device)) as executor:
                off, on = executor.map(lambda trial: _twice(trial, device), trials)
            if problem := (on if compiles else off).problem:
                raise FatalError(problem)
            changed = None
            if all(Path(trial.first).exists() for trial in trials):
                firsts = [np.load(trial.first) for trial in trials]
                changed = compare(list(zip(*firsts, strict=True)))
        verdict = Verdict(off, on, changed)
    typer.echo(_as_json(verdict) if as_json else _as_table(verdict))
    sys.exit(Exit.DONE if verdict.same else Exit.FAILED)


def _at_once(device: Device) -> int:
    """How many processes render at a time: memory of a GPU may hold a model only once."""
    return 2 if device.kind == "cpu" else 1


def _twice(trial: Trial, device: Device) -> Findings:
    """What a process found, and what a second one found beside it."""
    mode = f"compile {'on' if trial.compile else 'off'}"
    typer.echo(f"{mode}: the first process renders on {device.name}", err=True)
    first = _run(trial, device)
    if first.problem:
        return first
    typer.echo(f"{mode}: the second one", err=True)
    second = _run(trial, device)
    return Findings(first.ways | second.ways, first.stack, second.problem)


def _run(trial: Trial, device: Device) -> Findings:
    """Hold a trial in a process of its own, in the environment that a worker gives to a device."""
    with tempfile.TemporaryFile() as log:
        command = [
            sys.executable,
            "-P",
            "-m",
            "worker.commands.trials",
            orjson.dumps(asdict(trial)).decode(),
        ]
        own = os.environ | environment(device, _at_once(device))
        process = subprocess.Popen(command, env=own, stdout=subprocess.PIPE, stderr=log)
        with process:
            answer, _ = process.communicate()
        if process.returncode == 0:
            return _FINDINGS.validate_json(answer)
        log.seek(0)
        last = log.read()[-2000:].decode(errors="replace").strip()
        why = children.reason(process.returncode)
        return Findings(problem=f"the process that rendered ended: {why}\n{last}")


def _as_json(verdict: Verdict) -> str:
    return orjson.dumps(
        asdict(verdict) | {"same": verdict.same}, option=orjson.OPT_INDENT_2
    ).decode()


def _as_table(verdict: Verdict) -> str:
    modes: Mapping[str, Findings] = {"compile off": verdict.off, "compile on": verdict.on}
    stack = verdict.off.stack or verdict.on.stack
    names = dict.fromkeys([*verdict.off.ways, *verdict.on.ways])
    rows = [["", *modes]]
    rows += [[name, *(_cell(mode.ways.get(name)) for mode in modes.values())] for name in names]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    if stack:
        lines.insert(
            0, f"{stack.device_name}, {stack.dtype}, {stack.batch_width} slots, {stack.versions}"
        )
    lines += [f"{name}: {mode.problem}" for name, mode in modes.items() if mode.problem]
    if verdict.changed and verdict.changed.different:
        lines.append(
            f"With compile on, {verdict.changed.different} of {verdict.changed.compared} images "
            f"differ from those with it off, by up to {verdict.changed.most}/255: that is allowed."
        )
    return "\n".join(lines)


def _cell(one: Comparison | None) -> str:
    if one is None:
        return "-"
    if not one.different:
        return f"same, {one.compared} of {one.compared}"
    return f"{one.different} of {one.compared} DIFFER, by up to {one.most}/255"


if __name__ == "__main__":
    app(prog_name="imagemill check-determinism")
