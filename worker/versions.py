"""Versions of the libraries that decide what a pixel is."""

from __future__ import annotations

from importlib import metadata


def installed(*names: str) -> str:
    """Versions of installed distributions: "torch 2.13.0, diffusers 0.42.1"."""
    found = {name: _version(name) for name in names}
    return ", ".join(f"{name} {version}" for name, version in found.items() if version)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None  # imagemill itself, when it runs from a source tree
