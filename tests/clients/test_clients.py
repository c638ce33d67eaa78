"""Libraries that others build on, unmodified: each runs its own documented example here.

They live in an environment of their own: `make clients`.
"""

from __future__ import annotations

import json
import os
import subprocess
from base64 import b64decode
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.facades import Facade, make_premises, picture, stop

pytestmark = pytest.mark.clients


@pytest.fixture(scope="module")
def facade(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Facade]:
    """A facade whose models have the names that the examples ask for."""
    premises = make_premises(tmp_path_factory.mktemp("clients"))
    token = premises.key("team")
    process, url = premises.serve("up", "--models", "null")
    try:
        yield Facade(premises, url, token, "")
    finally:
        stop(process, premises.log("up"))


def run(facade: Facade, python: str, script: str, *args: str) -> Any:
    """What an example prints last, as JSON."""
    done = subprocess.run(
        [python, str(Path(__file__).with_name(f"{script}.py")), *args],
        cwd=facade.premises.folder,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(facade.premises.folder),
            "OPENAI_API_BASE": f"{facade.url}/openai/v1",
            "OPENAI_BASE_URL": f"{facade.url}/openai/v1",
            "OPENAI_API_KEY": facade.red,
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # the rest of the network is not there
            "NEMO_TELEMETRY_ENABLED": "false",
        },
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
    return json.loads(done.stdout.splitlines()[-1])


def size(data: bytes) -> tuple[int, int]:
    return Image.open(BytesIO(data)).size


@pytest.fixture(scope="session")
def python(request: pytest.FixtureRequest) -> str:
    return str(request.config.getoption("--clients-python"))


def test_litellm(facade: Facade, python: str, tmp_path: Path) -> None:
    (tmp_path / "otter.png").write_bytes(picture())
    found = run(facade, python, "litellm_images", str(tmp_path / "otter.png"))
    assert size(httpx.get(found["url"]).content) == (64, 64)
    assert [size(b64decode(one)) for one in found["b64_json"]] == [(64, 64)] * 3


def test_langchain(facade: Facade, python: str) -> None:
    found = run(facade, python, "langchain_images")
    assert size(httpx.get(found["url"]).content) == (1024, 1024)


def test_data_designer(facade: Facade, python: str, tmp_path: Path) -> None:
    found = run(facade, python, "data_designer_images", str(tmp_path))
    assert found["rows"] == 8
    assert [size(Path(file).read_bytes()) for file in found["files"]] == [(1024, 1024)] * 8
