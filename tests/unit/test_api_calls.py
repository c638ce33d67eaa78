"""Inputs of calls on their way into storage."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from io import BytesIO
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from PIL import Image

from jobs.inputs.images import InputPolicy, load_input
from jobs.models.table import load_models
from jobs.output.storage import open_storage
from producer.api import calls as calling
from producer.api.calls import INPUT_THREADS, Calls


def test_slow_inputs_of_one_team_do_not_hold_another_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """48 edits with slow URLs made another team's edit wait for 88 s."""
    there, waiting = Event(), []

    def load(reference: str, *arguments: Any) -> bytes:
        if reference == "slow":
            waiting.append(1)
            assert there.wait(20)
            reference = picture
        return load_input(reference, *arguments)

    monkeypatch.setattr(calling, "load_input", load)
    file = BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    picture = b64encode(file.getvalue()).decode()
    nothing: Any = None
    calls = Calls(
        table=load_models(None), storage=open_storage(str(tmp_path)), queue=nothing,
        roster=nothing, policy=InputPolicy(), seconds=60,
    )  # fmt: skip

    async def both_teams() -> None:
        red = [
            asyncio.create_task(calls._store_inputs("red", ["slow"], "image")) for _ in range(48)
        ]
        while len(waiting) < INPUT_THREADS:
            await asyncio.sleep(0)
        async with asyncio.timeout(10):
            (blue,) = await calls._store_inputs("blue", [picture], "image")
        assert not any(one.done() for one in red)
        there.set()
        assert await asyncio.gather(*red) == [[blue]] * 48

    asyncio.run(both_teams())
