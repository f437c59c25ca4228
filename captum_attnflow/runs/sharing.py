"""How work is shared out: to processes, a part each, or to actors of Ray.

A part is the ``i``-th share of ``n``, as ``--part i/n`` asks for it. An actor makes
what works on its tasks once, and has one thread.
"""

from __future__ import annotations

import logging
import math
import os
import platform
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from captum_attnflow._checks import (
    check_choice,
    check_integer,
    check_type,
    counted,
    described,
)
from captum_attnflow._warnings import warn_caller

ENGINES = ("local", "ray")
_RESTARTS = 3
_NOISE = re.compile(r"\x1b\[[0-9;]*m| \(pid=.*\)$", re.MULTILINE)  # in errors of Ray

_VARIABLES = (
    "RANK and WORLD_SIZE (torchrun), SLURM_ARRAY_TASK_ID and SLURM_ARRAY_TASK_COUNT, "
    "or SLURM_PROCID and SLURM_NTASKS"
)

Task = TypeVar("Task")
Result = TypeVar("Result")


def read_part(
    given: str | None, environment: Mapping[str, str] = os.environ
) -> tuple[int, int]:
    """Read which part of how many is meant.

    Of several launchers that speak at once, torchrun counts first, then a SLURM array,
    then the tasks of srun.

    Args:
        given (str, optional): ``"i/n"``, counted from 1; ``"auto"`` for what the
            launcher set; None for all of the table.
        environment (mapping): The environment's variables.

    Returns:
        tuple: ``i`` and ``n``.

    Raises:
        ValueError: If it is no part, or no launcher set any.

    Examples::

        >>> read_part("2/4")
        (2, 4)
        >>> read_part("auto", {"RANK": "0", "WORLD_SIZE": "8"})
        (1, 8)
    """
    if given is None:
        return 1, 1
    check_type("part", given, str, "i/n, such as 2/4, or auto")
    if given == "auto":
        return _of_launcher(environment)
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", given)
    if found is None:
        raise ValueError(
            f"part={given!r} is no part; give i/n, such as 2/4 for the second of four, "
            "or auto"
        )
    part = int(found[1]), int(found[2])
    check_part(part)
    return part


def check_part(part: object) -> None:
    """Refuse what is no part of a number of parts.

    Raises:
        ValueError: Saying what was given and what is accepted.
    """
    are_two = isinstance(part, tuple) and len(part) == 2
    if not isinstance(part, tuple) or not are_two or not all(map(_is_integer, part)):
        raise ValueError(f"part={described(part)}; give two integers, such as (2, 4)")
    index, n_parts = part
    if not 1 <= index <= n_parts:
        raise ValueError(
            f"part {index}/{n_parts} is out of range; parts are counted from 1: give "
            f"one of 1/{max(n_parts, 1)} to {max(n_parts, 1)}/{max(n_parts, 1)}"
        )


def _is_integer(given: object) -> bool:
    return isinstance(given, int) and not isinstance(given, bool)


def _of_launcher(environment: Mapping[str, str]) -> tuple[int, int]:
    def number(name: str, default: int | None = None) -> int:
        value = environment.get(name, default)
        try:
            return int(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            raise ValueError(
                f"part='auto': the variable {name} is {value!r} and no integer; give "
                "the part itself, such as 2/4"
            ) from None

    if "RANK" in environment and "WORLD_SIZE" in environment:
        part = number("RANK") + 1, number("WORLD_SIZE")
    elif "SLURM_ARRAY_TASK_ID" in environment:
        first, step = (
            number("SLURM_ARRAY_TASK_MIN", 0),
            number("SLURM_ARRAY_TASK_STEP", 1),
        )
        index = (number("SLURM_ARRAY_TASK_ID") - first) // max(step, 1)
        part = index + 1, number("SLURM_ARRAY_TASK_COUNT")
    elif "SLURM_PROCID" in environment and "SLURM_NTASKS" in environment:
        part = number("SLURM_PROCID") + 1, number("SLURM_NTASKS")
    else:
        raise ValueError(
            f"part='auto', but no launcher set {_VARIABLES}; give the part itself, "
            "such as 2/4"
        )
    check_part(part)
    return part


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


def device_of_worker(
    device: str | None, device_map: str | None, gpus_per_worker: float
) -> str | None:
    """Where a worker's model runs: on its GPU, if it has one and nothing was named."""
    is_named = device is not None or device_map is not None
    return "cuda" if gpus_per_worker and not is_named else device


def seen_from_anywhere(model: str) -> str:
    """A model's folder as workers find it, who may start in another; or its hub id."""
    return str(Path(model).absolute()) if Path(model).is_dir() else model


def check_shared(path: Path) -> None:
    """Refuse, in a worker, to write a file that the process with the table made.

    Raises:
        ValueError: If it is not there, as on a machine of its own.
    """
    if not path.is_file():
        raise ValueError(
            f"a worker of Ray on {platform.node()!r} does not see the folder "
            f"{path.parent}, to which workers write their results; give an --output "
            "that all machines of the cluster share, or start a process for each "
            "--part and put their files together"
        )


class _Worker:
    """What an actor is made of."""

    def __init__(self, make_work: Callable[[], Callable[[Any], Any]]) -> None:
        self.make_work = make_work
        self.work: Callable[[Any], Any] | None = None

    def do(self, task: Any) -> Any:
        if self.work is None:  # Not before: Ray says nothing useful of what fails then.
            import torch

            torch.set_num_threads(1)
            self.work = self.make_work()
        return self.work(task)


def work_by_ray(
    makers: Sequence[Callable[[], Callable[[Task], Result]]],
    tasks: Iterable[Task],
    gpus_per_worker: float,
) -> Iterator[Result]:
    """Give tasks to actors of Ray, and yield results as they are done.

    An actor that dies is started again, which is warned of once, and its task given to
    it again. No more tasks are read than there are actors.

    Args:
        makers (sequence of Callable): One for each actor, which calls it once, to load
            its model. It returns what is called with each task. Ray sends it there, as
            it does tasks and results.
        tasks (iterable): What to work on.
        gpus_per_worker (float): GPUs of each.

    Raises:
        ValueError: If Ray cannot be started or lacks the GPUs, an actor dies again and
            again at one task, or Ray fails otherwise, as where its disk is full.
        Exception: What the work itself raises.
    """
    import ray

    running: dict[Any, tuple[int, Task, int]] = {}  # worker, task and deaths at it
    has_warned = False

    def next_result() -> tuple[int, Result]:
        nonlocal has_warned
        while True:
            [done], _ = ray.wait(list(running))
            worker, task, n_deaths = running.pop(done)
            try:
                return worker, ray.get(done)
            except ray.exceptions.RayTaskError as error:
                raise error.as_instanceof_cause() from error
            except ray.exceptions.RayError as error:
                # Other errors, as of a full disk, would come again.
                if not _is_death(error):
                    raise ValueError(
                        "Ray could not start a worker or hand over a task or its "
                        f"result ({_reason(error)}). What was written stays: mend "
                        "this and run again, or start a process for each --part"
                    ) from error
                if n_deaths == _RESTARTS:
                    raise ValueError(
                        f"a worker of Ray died more than {counted(_RESTARTS, 'time')} "
                        f"at one task, maybe as memory was short ({_reason(error)}). "
                        "What was written stays: run again, with fewer --workers or a "
                        "smaller --batch-size"
                    ) from error
            if not has_warned:
                warn_caller(
                    "a worker of Ray died, maybe as memory was short, and was started "
                    "again; what it worked on is done anew"
                )
                has_warned = True
            ray.kill(actors[worker])
            actors[worker] = start(makers[worker])
            running[actors[worker].do.remote(task)] = worker, task, n_deaths + 1

    with _running(len(makers), gpus_per_worker):
        # Ray could start actors again itself. It does so without a word, and says of
        # tasks that end with their actors, as in an interrupt, that they are retried.
        options = {"num_cpus": 1, "num_gpus": gpus_per_worker}
        start = ray.remote(_Worker).options(**options).remote
        actors = [start(make_work) for make_work in makers]
        free = [*range(len(actors))]
        try:
            for task in tasks:
                if not free:
                    worker, result = next_result()
                    free.append(worker)
                    yield result
                worker = free.pop()
                running[actors[worker].do.remote(task)] = worker, task, 0
            while running:
                yield next_result()[1]
        finally:
            for each in actors:
                ray.kill(each)


def _is_death(error: Exception) -> bool:
    """Whether a process ended that worked, so that another may do better."""
    from ray.exceptions import OutOfMemoryError, RayActorError, WorkerCrashedError

    if isinstance(error, RayActorError):
        return not error.actor_init_failed
    return isinstance(error, (OutOfMemoryError, WorkerCrashedError))


def _reason(error: Exception) -> str:
    """What Ray says, without tracebacks, colours and numbers of processes."""
    said = _NOISE.sub("", str(error)).splitlines()
    lines = [line for line in said if line.strip()] or [type(error).__name__]
    return " ... ".join(dict.fromkeys([lines[0], lines[-1]]))


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
            f"workers={workers} with gpus_per_worker={wanted:g} need "
            f"{wanted * workers:g} in all, and Ray has {there:g}; give fewer --workers "
            "or --gpus-per-worker"
        )
