"""How much memory there is, and how torch says that it is short."""

from __future__ import annotations

from pathlib import Path

import torch

# Where there is no error of its own: the CPU, Apple's GPUs, CUDA's libraries.
_WORDS = ("DefaultCPUAllocator", "out of memory", "STATUS_ALLOC_FAILED")
_GROUP = Path("/sys/fs/cgroup")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that an allocation failed, of a GPU or of the CPU."""
    # Its older name, which versions before 2.5 know as well.
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in _WORDS
    )


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that may still be taken on a device, if that is known.

    On Linux a container's limit counts, too.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What torch holds without using it can be used again.
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + held)
    if device.type != "cpu":
        return None
    limits = [_of_machine(), _of_group()]
    return min((limit for limit in limits if limit is not None), default=None)


def _of_machine() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        sizes = dict(line.split(":", 1) for line in lines)
        return int(sizes["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def _of_group() -> int | None:
    try:
        limit, taken = (
            (_GROUP / name).read_text("ascii").strip()
            for name in ("memory.max", "memory.current")
        )
        return None if limit == "max" else max(0, int(limit) - int(taken))
    except (OSError, ValueError):
        return None
