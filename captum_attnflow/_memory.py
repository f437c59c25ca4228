"""How torch says that memory is short."""

from __future__ import annotations

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that an allocation failed, of a GPU or of the CPU."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    # The CPU's allocator has no error of its own.
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
