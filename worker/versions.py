"""Versions of the libraries that decide what a pixel is, read without importing them."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from runpy import run_path


@dataclass(frozen=True, slots=True)
class TorchBuild:
    """What the installed torch was built for: the version of CUDA, ROCm (hip) or XPU, or None."""

    version: str
    cuda: str | None = None
    hip: str | None = None
    xpu: str | None = None


def installed(*names: str) -> str:
    """Versions of installed distributions: "torch 2.13.0, diffusers 0.42.1"."""
    found = {name: _version(name) for name in names}
    return ", ".join(f"{name} {version}" for name, version in found.items() if version)


def torch_build() -> TorchBuild:
    """What torch/version.py says."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return TorchBuild("none")
    values = run_path(str(Path(spec.origin).with_name("version.py")))
    return TorchBuild(
        values["__version__"], values.get("cuda"), values.get("hip"), values.get("xpu")
    )


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None  # imagemill itself, when it runs from a source tree
