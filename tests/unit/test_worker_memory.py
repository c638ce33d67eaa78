"""Which errors of torch mean that memory ran out, which that the device is lost."""

from __future__ import annotations

import pytest
import torch

from worker.pipelines.memory import is_device_lost, is_out_of_memory, out_of_memory

SHORT: list[RuntimeError] = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has …"),
    # What kernels meet that ask the driver themselves; the device is well after it.
    torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be …"),
    torch.AcceleratorError("HIP error: out of memory"),
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("UR backend failed. … returns:39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to …"),
]
LOST: list[RuntimeError] = [
    torch.AcceleratorError("CUDA error: device-side assert triggered"),
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
    torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"),
]


@pytest.mark.parametrize("error", SHORT)
def test_memory_that_ran_out_is_known_by_every_name(error: RuntimeError) -> None:
    assert is_out_of_memory(error)
    assert not is_device_lost(error)


@pytest.mark.parametrize("error", LOST)
def test_a_lost_device_is_no_shortage(error: RuntimeError) -> None:
    assert is_device_lost(error)
    assert not is_out_of_memory(error)


def test_a_request_that_raises_is_neither() -> None:
    error = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    assert not is_device_lost(error)
    assert not is_out_of_memory(error)


def test_the_bytes_come_first() -> None:
    assert str(out_of_memory(SHORT[0])).startswith("2684354560 bytes more were needed: CUDA")
    assert str(out_of_memory(SHORT[3])) == "CUDA driver error: out of memory"
