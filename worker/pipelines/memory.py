"""What torch says when memory runs out, or the device is lost."""

from __future__ import annotations

import gc
import re
import resource

import torch

_UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
# What libraries say that have no exception of their own for it: the CPU's allocator; CUDA, which
# calls it an error of the device although the device is well; cuBLAS, cuDNN and Triton.
_SHORTAGE = re.compile(
    r"DefaultCPUAllocator|error( \[CUDA\])?: out of memory|_STATUS_ALLOC_FAILED"
    r"|DEVICE_ALLOCATION_FAILED|OUT_OF_(DEVICE|HOST)_MEMORY",
    re.IGNORECASE,
)
# "Tried to allocate 2.50 GiB." on GPUs; "you tried to allocate 4096 bytes" on the CPU.
_ALLOCATION = re.compile(r"tried to allocate ([\d.]+) (bytes|KiB|MiB|GiB)", re.IGNORECASE)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error of torch is one of memory."""
    return isinstance(error, torch.OutOfMemoryError) or bool(_SHORTAGE.search(str(error)))


def out_of_memory(error: RuntimeError) -> MemoryError:
    """The same as a MemoryError that begins with the bytes that were needed, where torch tells."""
    found = _ALLOCATION.search(str(error))
    if found is None:
        return MemoryError(str(error))
    needed = round(float(found[1]) * _UNITS[found[2]])
    return MemoryError(f"{needed} bytes more were needed: {error}")


def is_device_lost(error: RuntimeError) -> bool:
    """Whether nothing works on the device any more: from a CUDA fault no process recovers."""
    return isinstance(error, torch.AcceleratorError) and not is_out_of_memory(error)


def give_back() -> None:
    """Free what nothing refers to any more, on the GPU too."""
    gc.collect()
    torch.cuda.empty_cache()


def reset_peak() -> None:
    """Measure anew: `peak` tells what was needed from now on. On the CPU it cannot be reset."""
    give_back()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak() -> int:
    """The most bytes that tensors took on the GPU, or this process on the CPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
