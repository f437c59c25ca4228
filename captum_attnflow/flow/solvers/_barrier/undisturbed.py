"""Work that must not end halfway, where a signal would end it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def undisturbed(work: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """Do some work that no signal ends halfway, such as an interrupt by the user.

    An import of Numba that ends halfway cannot be had again in the same process, and
    LLVM calls Python back, where an exception is lost together with the code. But
    signals raise exceptions in the main thread alone, which therefore waits for another
    one, and raises when that is done.
    """
    if threading.current_thread() is not threading.main_thread():
        return work(*arguments, **options)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work, *arguments, **options).result()
