"""How much memory there is, and how torch says that it is short."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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


class HeldMemory(TorchDispatchMode):
    """Counts what tensors take that were made while it was active and are still held.

    Such as what a forward pass keeps for its backward pass, whatever keeps it.

    Examples::

        >>> x = torch.ones(256, requires_grad=True)
        >>> with HeldMemory() as memory:
        ...     y = (x.exp() + 1).sum()  # exp's gradient needs its output
        ...     memory.held()
        {device(type='cpu'): 1028}
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._made: dict[int, tuple[StorageWeakRef, torch.device, int]] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Note the storages that a call makes; a view's is that of what it views."""
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        given = {storage._cdata for storage in _storages((args, kwargs))}
        for storage in _storages(output):
            if storage._cdata not in given:
                reference = StorageWeakRef(storage)
                note = (reference, storage.device, storage.nbytes())
                self._made[storage._cdata] = note
        return output

    def held(self) -> dict[torch.device, int]:
        """Bytes that are held now, by the device that holds them."""
        found: dict[torch.device, int] = {}
        for storage, device, size in self._made.values():
            if not storage.expired():
                found[device] = found.get(device, 0) + size
        return found


class Growth(NamedTuple):
    """How many bytes texts take: ``constant + linear * n + squared * n ** 2``."""

    constant: float
    linear: float
    squared: float

    @staticmethod
    def fit(lengths: Sequence[int], held: Sequence[int]) -> Growth:
        """Fit what texts took, without negative terms.

        Args:
            lengths (sequence of int): Their numbers of tokens.
            held (sequence of int): The bytes.

        Examples::

            >>> growth = Growth.fit([10, 20, 30], [1100, 1400, 1900])
            >>> round(growth.at(40)), growth.most_tokens(1400)
            (2600, 20)
        """
        from scipy.optimize import nnls  # long texts alone need it

        # In parts of the longest, so that powers are of one size.
        longest = max(lengths)
        powers = [[(n / longest) ** power for power in range(3)] for n in lengths]
        by, _ = nnls(powers, [float(size) for size in held])
        return Growth(float(by[0]), float(by[1]) / longest, float(by[2]) / longest**2)

    def at(self, n_tokens: int) -> float:
        """The bytes of so many tokens."""
        return self.constant + self.linear * n_tokens + self.squared * n_tokens**2

    def most_tokens(self, free: int) -> int:
        """How many tokens fit into so many bytes; 0 if none do."""
        room = free - self.constant
        if room <= 0:
            return 0
        # The root of the quadratic, in the form that a term of 0 leaves finite.
        root = (self.linear**2 + 4 * self.squared * room) ** 0.5
        return int(2 * room / (self.linear + root) + 1e-9)


def _storages(given: Any) -> Iterator[torch.UntypedStorage]:
    for leaf in tree_leaves(given):
        if isinstance(leaf, torch.Tensor):
            yield leaf.untyped_storage()
