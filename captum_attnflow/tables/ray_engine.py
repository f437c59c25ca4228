"""Tasks on Ray: each actor makes what works on them once, and has one thread."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, TypeVar

from captum_attnflow._checks import check_choice, check_integer, described

ENGINES = ("local", "ray")
_RESTARTS = 3

Task = TypeVar("Task")
Result = TypeVar("Result")


def check_engine(engine: str, workers: int, gpus_per_worker: float) -> None:
    """Refuse an engine that is not there, and workers of none.

    Args:
        engine (str): One of :data:`ENGINES`.
        workers (int): Actors of Ray.
        gpus_per_worker (float): GPUs of each.

    Raises:
        ValueError: Saying what was given, what is accepted and what to do.
    """
    check_choice("engine", engine, ENGINES)
    check_integer("workers", workers, 1)
    given = gpus_per_worker
    is_number = isinstance(given, (int, float)) and not isinstance(given, bool)
    if not is_number or not 0 <= given < math.inf:
        raise ValueError(
            f"gpus_per_worker={described(given)} must be a number from 0 on"
        )
    if engine == "local" and (workers != 1 or given):
        raise ValueError(
            f"workers={workers} and gpus_per_worker={given} are of Ray; give "
            "--engine ray, or start several processes with a --part each"
        )
    if engine == "ray" and find_spec("ray") is None:
        raise ValueError(
            "the engine ray needs Ray, which is not installed: pip install "
            '"captum-attnflow[ray]", or start a process for each --part'
        )


def device_of_worker(device: str | None, gpus_per_worker: float) -> str | None:
    """Where a worker's model runs: on its GPU, if it has one and nothing was named."""
    return "cuda" if device is None and gpus_per_worker else device


class _Worker:
    """What an actor is made of."""

    def __init__(self, make_work: Callable[[], Callable[[Any], Any]]) -> None:
        import torch

        torch.set_num_threads(1)
        self.work = make_work()

    def do(self, task: Any) -> Any:
        return self.work(task)


def work_by_ray(
    make_work: Callable[[], Callable[[Task], Result]],
    tasks: Iterable[Task],
    workers: int,
    gpus_per_worker: float,
) -> Iterator[Result]:
    """Give tasks to actors of Ray, and yield results as they are done.

    An actor that dies is started again, and its task given to it again. No more tasks
    are read than there are actors.

    Args:
        make_work (Callable): Returns what is called with each task; an actor calls it
            once, to load its model. Ray sends it there, as it does tasks and results.
        tasks (iterable): What to work on.
        workers (int): How many actors there are.
        gpus_per_worker (float): GPUs of each.

    Raises:
        ValueError: If Ray cannot be started or lacks the GPUs, or an actor dies again
            and again.
        Exception: What the work itself raises.
    """
    import ray
    from ray.util import ActorPool

    with _running(workers, gpus_per_worker):
        actor = ray.remote(_Worker).options(
            num_cpus=1,
            num_gpus=gpus_per_worker,
            max_restarts=_RESTARTS,
            max_task_retries=_RESTARTS,
        )
        actors = [actor.remote(make_work) for _ in range(workers)]
        pool = ActorPool(actors)
        try:
            for task in tasks:
                if not pool.has_free():
                    yield pool.get_next_unordered()
                pool.submit(lambda worker, given: worker.do.remote(given), task)
            while pool.has_next():
                yield pool.get_next_unordered()
        except ray.exceptions.RayTaskError as error:
            raise error.as_instanceof_cause() from error
        except ray.exceptions.RayError as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            said = " ... ".join(dict.fromkeys([lines[0], lines[-1]]))
            raise ValueError(
                f"a worker of Ray could not be started, or died more than {_RESTARTS} "
                f"times, maybe as memory was short ({said}). What was written stays: "
                "run again, with fewer --workers or a smaller --batch-size"
            ) from error
        finally:
            for each in actors:
                ray.kill(each)


@contextmanager
def _running(workers: int, gpus_per_worker: float) -> Iterator[None]:
    """Be connected to Ray: a running one, that of ``RAY_ADDRESS``, or one of our own.

    Usage statistics are off. Ray reads its environment when it is imported.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        _check_gpus(workers, gpus_per_worker)
        yield
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if not os.environ.get("RAY_ADDRESS"):
        options |= {"num_cpus": workers, "include_dashboard": False}
    try:
        ray.init(**options)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"Ray cannot be started or reached ({error}); mend RAY_ADDRESS or leave it "
            "out, or start a process for each --part"
        ) from error
    try:
        _check_gpus(workers, gpus_per_worker)
        yield
    finally:
        ray.shutdown()


def _check_gpus(workers: int, gpus_per_worker: float) -> None:
    import ray

    there, wanted = ray.cluster_resources().get("GPU", 0), gpus_per_worker
    if wanted * workers > there:
        raise ValueError(
            f"{workers} workers with {wanted:g} GPUs each need "
            f"{wanted * workers:g}, and Ray has {there:g}; give fewer --workers or "
            "--gpus-per-worker"
        )
