"""The models table names what is wrong with it."""

import hashlib
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier, Event
from typing import BinaryIO

import pytest

from jobs.errors import InvalidRequest, UsageError
from jobs.models.fingerprints import fingerprint
from jobs.models.table import Route, load_models


def table_of(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "models.toml"
    file.write_text(text)
    return file


def test_the_built_in_table_has_the_demo_model() -> None:
    table = load_models()
    assert table.default == "shapes"
    assert table.source(table.get("shapes")) == table.folder / "demo" / "shapes"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("default = ", "is not TOML"),
        ("models = " + "[" * 2000, "is not TOML: nested too deeply"),
        ('default = "a"\n[models.b]\nrepo = "x/y"', "default 'a' is not one of the models"),
        ('default = "a"\n[models.a]\nrepo = "x/y"\nbatch_width = 3', "power of two"),
        ('default = "a"\n[models.a]\nrepo = "x/y"\nsteps = 99', "models.a.steps"),
        ('default = "a"\n[models.a]\nrepo = "x/y"\nstep = 9', "models.a.step"),
        ('default = "a"\n[models.a]\nrepo = "x/y"\nsize = [65, 64]', "no multiple of 8"),
        ('default = "A b"\n[models."A b"]\nrepo = "x/y"', "models"),
        ('default = "a"\naliases = {a = "a"}\n[models.a]\nrepo = "x/y"', "'a' is a model's name"),
        ('default = "a"\naliases = {b = "c"}\n[models.a]\nrepo = "x/y"', "'c' is no model"),
        ('default = "a"\naliases = {b = "a:"}\n[models.a]\nrepo = "x/y"', "'a:' is no model"),
        ('default = "a"\naliases = {"a:b" = "a"}\n[models.a]\nrepo = "x/y"', "aliases.a:b"),
    ],
)
def test_a_wrong_table_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_models(table_of(tmp_path, text))
    assert reason in str(caught.value)
    assert "models.toml" in str(caught.value)


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.toml"):
        load_models(tmp_path / "none.toml")


TWO = """
default = "a"
[models.a]
repo = "x/y"
[models.a.adapters.ink]
repo = "ink.safetensors"
[models.b]
repo = "x/z"
"""


def test_routes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    table = load_models(table_of(tmp_path, TWO))
    assert table.route(None).model == "a"
    assert (table.route("a:ink").model, table.route("a:ink").adapter) == ("a", "ink")
    assert table.route("org/repo").model == "org/repo"
    for unknown in ("c", "b:ink", "pen", "a:"):
        with pytest.raises(InvalidRequest) as caught:
            table.route(unknown)
        assert caught.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("pencils", "pencil"),
        ("SDXL", "sdxl"),
        ("sdxl:pncil", "pencil"),
        ("SDXL:pencil", "sdxl:pencil"),
        ("dalle-3", "dall-e-3"),
    ],
)
def test_a_mistyped_name_is_told_the_nearest(tmp_path: Path, wrong: str, near: str) -> None:
    text = TWO.replace("models.a", "models.sdxl").replace('"a"', '"sdxl"').replace("ink", "pencil")
    table = load_models(table_of(tmp_path, text + '[aliases]\ndall-e-3 = "b"\n'))
    with pytest.raises(InvalidRequest, match=f"; did you mean '{near}'\\?$"):
        table.route(wrong)


def test_a_folder_that_is_none_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    table = load_models()
    for name, lack in {
        "./nofolder": "there is no folder './nofolder'",
        str(tmp_path / "nofolder"): "there is no folder",
        "a/b/c": "there is no folder 'a/b/c'",
        "./empty": "folder './empty' has no model_index.json",
        "empty": "folder 'empty' has no model_index.json",
        "emty": "unknown model 'emty'; known: ",
        "x" * 5000: "unknown model",
        "a\0/b": "there is no folder 'a\\x00/b'",
    }.items():
        with pytest.raises(InvalidRequest, match=f"^model: {re.escape(lack)}"):
            table.route(name)
        with pytest.raises(InvalidRequest, match="unknown model"):  # a stranger is told nothing
            replace(table, closed=True).route(name)


def test_aliases_are_other_names(tmp_path: Path) -> None:
    text = TWO + '[aliases]\ndall-e-3 = "a:ink"\n"gpt-image-1.5" = "b"\nink = "b"\n'
    table = load_models(table_of(tmp_path, text))
    assert table.route("dall-e-3") == Route("a", "ink")
    assert table.route("gpt-image-1.5") == Route("b", "")
    assert table.route("ink") == Route("b", "")  # what is written there beats what is found
    with pytest.raises(InvalidRequest, match=r"known: a, b, dall-e-3, gpt-image-1\.5, ink"):
        table.route("c")


def adapters(*routes: str) -> str:
    rows = (route.split(":") for route in routes)
    return "".join(f'[models.{m}.adapters.{a}]\nrepo = "{m}-{a}.safetensors"\n' for m, a in rows)


def test_an_adapters_bare_name_is_enough_where_it_means_one(tmp_path: Path) -> None:
    text = TWO + '[models.c]\nrepo = "x/c"\n' + adapters("b:ink", "b:oil", "b:pen", "c:pen")
    table = load_models(table_of(tmp_path, text))
    assert table.route("ink") == Route("a", "ink")  # the default model's come first
    assert table.route("oil") == Route("b", "oil")
    with pytest.raises(InvalidRequest, match="b:pen, c:pen") as caught:
        table.route("pen")
    assert caught.value.field == "model"


def test_a_bare_folder_is_inspected_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    table = load_models()
    first = table.get(str(tmp_path))
    assert first.family == "flux"
    monkeypatch.setattr("jobs.models.table.inspect_folder", None)
    assert table.get(str(tmp_path)) is first


def test_a_folders_fingerprint_follows_its_weights(tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "model_index.json").write_text("{}")
    (tmp_path / "w" / "unet.safetensors").write_bytes(b"1")
    table = load_models(table_of(tmp_path, 'default = "a"\n[models.a]\nrepo = "w"'))
    before = fingerprint(table, table.get("a"))
    (tmp_path / "w" / "unet.safetensors").write_bytes(b"22")
    assert fingerprint(table, table.get("a")).digest != before.digest


def test_what_a_row_does_not_say_changes_no_fingerprint() -> None:
    """Nor job ids: these are older than the fields variant, vae and dtype "auto"."""
    table = load_models()
    found = {name: fingerprint(table, row).digest for name, row in table.models.items()}
    assert found == {
        "shapes": "79fe5561d63c9f57",
        "shapes-edges": "3d6e8afb5d3e3de6",
        "shapes-edits": "a4c5527630e0e2a5",
        "null": "a1620e85d8b57af0",
    }


def test_what_a_row_says_changes_its_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae/config.json").write_text("{}")
    commit = "0" * 40
    rows = [
        "",
        'dtype = "float32"',
        'variant = "fp16"',
        'vae = { repo = "vae" }',
        'vae = { repo = "vae", variant = "fp16" }',
    ]
    digests = set()
    for row in rows:
        text = f'default = "a"\n[models.a]\nrepo = "x/y"\nrevision = "{commit}"\n{row}'
        table = load_models(table_of(tmp_path, text))
        digests.add(fingerprint(table, table.get("a")).digest)
    assert len(digests) == len(rows)


def test_first_starts_at_once_read_a_folder_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "w").mkdir()
    (tmp_path / "w/model_index.json").write_text("{}")
    (tmp_path / "w/unet.safetensors").write_bytes(b"1")
    table = load_models(table_of(tmp_path, 'default = "a"\n[models.a]\nrepo = "w"'))
    together, read = Barrier(8), []

    def slow(file: BinaryIO, name: str) -> object:
        read.append(file.name)
        Event().wait(0.05)
        return hashlib.file_digest(file, name)

    def start(_: int) -> str:
        together.wait()
        return fingerprint(table, table.get("a")).digest

    monkeypatch.setattr("jobs.models.fingerprints.file_digest", slow)
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(start, range(8)))) == 1
    assert sorted(read) == sorted(set(read))
    assert len(read) == 2
