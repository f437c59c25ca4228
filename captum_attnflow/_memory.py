"""How torch says that memory is short."""

from __future__ import annotations

import torch

# Where there is no error of its own: the CPU, Apple's GPUs, CUDA's libraries.
_WORDS = ("DefaultCPUAllocator", "out of memory", "STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that an allocation failed, of a GPU or of the CPU."""
    # Its older name, which versions before 2.5 know as well.
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in _WORDS
    )
