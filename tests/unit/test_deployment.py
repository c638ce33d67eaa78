"""docker-compose.yml and configs/kubernetes: well-formed, and true to the commands and settings.

compose-spec.json is the Compose specification's own schema (Apache License 2.0).
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from jsonschema import Draft7Validator
from typer.testing import CliRunner

from jobs.settings import Settings
from producer.cli import make_cli
from worker.__main__ import app as worker
from worker.process.supervisor import KILL_SECONDS

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = {name: one for name, one in SERVICES.items() if "build" in one}
OBJECTS: list[dict[str, Any]] = [
    one
    for path in sorted((ROOT / "configs/kubernetes").glob("*.yaml"))
    if path.name != "kustomization.yaml"
    for one in yaml.safe_load_all(path.read_text("utf-8"))
]
PODS = {o["metadata"]["name"]: o["spec"]["template"] for o in OBJECTS if o["kind"] == "Deployment"}


def check_command(command: list[str]) -> None:
    """Options that do not exist are refused before help is shown."""
    assert command[0] == "imagemill"
    cli, args = (worker, command[2:]) if command[1] == "worker" else (make_cli(), command[1:])
    shown = CliRunner().invoke(cli, [*args, "--help"])
    assert shown.exit_code == 0, shown.output


def check_settings(names: Iterator[str]) -> None:
    ours = {name.removeprefix("IMAGEMILL_").lower() for name in names if "IMAGEMILL_" in name}
    assert ours <= set(Settings.model_fields)


def test_compose_is_of_its_specification() -> None:
    schema = orjson.loads((Path(__file__).parent / "compose-spec.json").read_bytes())
    Draft7Validator(schema).validate(COMPOSE)
    assert {v.split(":")[0] for s in SERVICES.values() for v in s.get("volumes", [])
            if v[0] != "."} == set(COMPOSE["volumes"])  # fmt: skip
    for service in SERVICES.values():
        assert service["restart"] == ("no" if service is SERVICES["demo"] else "unless-stopped")
        assert ":" in service.get("image", ":")  # never whatever is the latest
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:")
        for secret in service.get("secrets", []):
            assert (secret if isinstance(secret, str) else secret["source"]) in COMPOSE["secrets"]
        for path in service.get("volumes", []):
            assert path[0] != "." or (ROOT / path.split(":")[0]).exists()


def test_the_image_without_torch_has_the_same_packages_else() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    lean = set(project["dependency-groups"]["producer"])
    traces = set(project["project"]["optional-dependencies"]["traces"])
    assert traces < lean < traces | set(project["project"]["dependencies"])
    assert "'.[traces]'" in (ROOT / "Dockerfile").read_text("utf-8")


@pytest.mark.parametrize("name", OURS)
def test_services_run_what_there_is(name: str) -> None:
    service = OURS[name]
    check_command(service["command"])
    check_settings(iter(service["environment"]))
    targets = [s["target"] for s in service.get("secrets", []) if isinstance(s, dict)]
    check_settings(one.upper() for one in targets)
    assert not any("KEY" in v and "FILE" not in v for v in service["environment"])


def test_workers_may_end_their_batch() -> None:
    usual = Settings.model_fields["shutdown_timeout"].default + KILL_SECONDS
    assert int(SERVICES["worker"]["stop_grace_period"].removesuffix("s")) > usual
    assert PODS["imagemill-worker"]["spec"]["terminationGracePeriodSeconds"] > usual
    calls = Settings.model_fields["call_seconds"].default
    assert int(SERVICES["facade"]["stop_grace_period"].removesuffix("s")) > calls
    assert PODS["imagemill-facade"]["spec"]["terminationGracePeriodSeconds"] > calls


def test_kustomize_takes_all_files() -> None:
    folder = ROOT / "configs/kubernetes"
    listed = yaml.safe_load((folder / "kustomization.yaml").read_text("utf-8"))["resources"]
    assert sorted([*listed, "kustomization.yaml"]) == sorted(p.name for p in folder.glob("*.yaml"))


@pytest.mark.parametrize("name", PODS)
def test_pods_are_bounded_and_run_what_there_is(name: str) -> None:
    pod = PODS[name]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    volumes = {volume["name"] for volume in pod["volumes"]}
    for container in pod["containers"]:
        check_command(container["command"])
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert "memory" in container["resources"]["limits"]
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        check_settings(one["name"] for one in container.get("env", []))


def test_selectors_find_their_pods() -> None:
    labels = {name: pod["metadata"]["labels"] for name, pod in PODS.items()}
    for one in OBJECTS:
        spec = one["spec"] if one["kind"] not in ("ConfigMap", "Namespace") else {}
        chosen = spec.get("podSelector") or spec.get("selector") or {}
        chosen = chosen.get("matchLabels", chosen)
        if chosen and "matchExpressions" not in chosen:
            assert any(chosen.items() <= own.items() for own in labels.values()), one["metadata"]
        if one["kind"] == "ScaledObject":
            assert spec["scaleTargetRef"]["name"] in PODS
