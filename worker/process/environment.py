"""What the libraries of a device process find in their environment when they are imported."""

from __future__ import annotations

import os

from platformdirs import user_cache_path

from worker.process.devices import Device

# OpenMP (torch), OpenBLAS (NumPy), MKL, Rust's (tokenizers), and compilers of torch.compile.
_THREADS = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS",
    "TORCHINDUCTOR_COMPILE_THREADS",
)  # fmt: skip


def environment(device: Device, processes: int) -> dict[str, str]:
    """What is set for the process of a device, one of so many on this machine."""
    pinned = {
        "CUDA_VISIBLE_DEVICES": device.visible,
        # The numbers of nvidia-smi; CUDA's own begin with the fastest.
        "CUDA_DEVICE_ORDER": os.environ.get("CUDA_DEVICE_ORDER", "PCI_BUS_ID"),
        # What cuBLAS needs to give the same bits for the same input.
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    }
    return _waiting(processes) | _threads(processes) | _allocating() | _compiling() | pinned


def _threads(processes: int) -> dict[str, str]:
    """How many threads the libraries of a process start, unless the environment says it.

    Each would start one a core, in every process. What renders sets its own number of them.
    """
    share = max(1, len(os.sched_getaffinity(0)) // processes)
    return {name: str(share) for name in _THREADS if name not in os.environ}


def _waiting(processes: int) -> dict[str, str]:
    """How torch's threads wait for each other, unless the environment says it.

    By default they spin for so long that two processes on the same cores come to 0.14 of the
    pace of one. A short spin costs one alone 3 %; none costs it 8 %, but two come to 1.1.
    """
    if {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}.intersection(os.environ):
        return {}
    if processes > 1:
        return {"OMP_WAIT_POLICY": "PASSIVE"}
    return {"GOMP_SPINCOUNT": "10000"}


def _compiling() -> dict[str, str]:
    """Where torch.compile keeps what it compiled, unless the environment says it.

    One place for all workers of a host, which a restart of the host does not empty.
    """
    if "TORCHINDUCTOR_CACHE_DIR" in os.environ:
        return {}
    return {"TORCHINDUCTOR_CACHE_DIR": str(user_cache_path("imagemill") / "compiled")}


def _allocating() -> dict[str, str]:
    """How torch asks the GPU for memory, unless the environment says it.

    In blocks that grow: sizes of many requests leave no holes behind that nothing fits into.
    """
    if {
        "PYTORCH_ALLOC_CONF",
        "PYTORCH_CUDA_ALLOC_CONF",
        "PYTORCH_HIP_ALLOC_CONF",
    } & os.environ.keys():
        return {}
    return {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
