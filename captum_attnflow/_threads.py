"""Hooks that stand on a shared module, and the threads that call it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import wraps
from typing import Any

from torch import nn


def in_this_thread(layer: nn.Module, hook: Callable[..., Any]) -> Callable[..., Any]:
    """Keep a hook from calls that other threads make of a layer.

    A hook belongs to the module, and other threads may run it meanwhile. Replicas of
    the layer, which ``DataParallel`` runs in threads of its own, are modules of their
    own: their calls count.

    Args:
        layer (Module): The layer that the hook is registered on.
        hook (Callable): Of the module and what it takes or puts out.

    Returns:
        Callable: Does nothing where another thread calls ``layer``.
    """
    owner = threading.get_ident()

    @wraps(hook)
    def own(module: nn.Module, *arguments: Any) -> Any:
        if module is layer and threading.get_ident() != owner:
            return None
        return hook(module, *arguments)

    return own
