"""Chunks on Ray: each actor holds the model and has one thread."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from captum_attnflow.tables.chunks import Chunk
from captum_attnflow.tables.explainer import ChunkExplainer, ExplainedChunk
from captum_attnflow.tables.settings import TableJob

_RESTARTS = 3


class _Worker:
    """What an actor is made of."""

    def __init__(self, job: TableJob) -> None:
        import torch

        torch.set_num_threads(1)
        if job.gpus_per_worker and job.device is None:
            job = replace(job, device="cuda")
        self.explain_chunk = ChunkExplainer.load(job)

    def explain(self, chunk: Chunk) -> ExplainedChunk:
        return self.explain_chunk(chunk)


def explain_by_ray(job: TableJob, chunks: Iterable[Chunk]) -> Iterator[ExplainedChunk]:
    """Explain chunks by actors of Ray, and yield them as they are done.

    An actor that dies is started again, and its chunk given to it again. No more chunks
    are read than there are actors.

    Args:
        job (TableJob): Names the model, and how many workers there are.
        chunks (iterable of Chunk): What to explain.

    Raises:
        ValueError: If Ray cannot be started or lacks the GPUs, or an actor dies again
            and again.
    """
    import ray
    from ray.util import ActorPool

    with _running(job):
        actor = ray.remote(_Worker).options(
            num_cpus=1,
            num_gpus=job.gpus_per_worker,
            max_restarts=_RESTARTS,
            max_task_retries=_RESTARTS,
        )
        actors = [actor.remote(job) for _ in range(job.workers)]
        pool = ActorPool(actors)
        try:
            for chunk in chunks:
                if not pool.has_free():
                    yield pool.get_next_unordered()
                pool.submit(lambda worker, given: worker.explain.remote(given), chunk)
            while pool.has_next():
                yield pool.get_next_unordered()
        except ray.exceptions.RayTaskError as error:
            raise error.as_instanceof_cause() from error
        except ray.exceptions.RayError as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            said = " ... ".join(dict.fromkeys([lines[0], lines[-1]]))
            raise ValueError(
                f"a worker of Ray could not be started, or died more than {_RESTARTS} "
                f"times, maybe as memory was short ({said}). The part files that are "
                "there stay: run again, with fewer --workers or a smaller --batch-size"
            ) from error
        finally:
            for each in actors:
                ray.kill(each)


@contextmanager
def _running(job: TableJob) -> Iterator[None]:
    """Be connected to Ray: a running one, that of ``RAY_ADDRESS``, or one of our own.

    Usage statistics are off. Ray reads its environment when it is imported.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        _check_gpus(job)
        yield
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if not os.environ.get("RAY_ADDRESS"):
        options |= {"num_cpus": job.workers, "include_dashboard": False}
    try:
        ray.init(**options)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"Ray cannot be started or reached ({error}); mend RAY_ADDRESS or leave it "
            "out, or start a process for each --part"
        ) from error
    try:
        _check_gpus(job)
        yield
    finally:
        ray.shutdown()


def _check_gpus(job: TableJob) -> None:
    import ray

    there, wanted = ray.cluster_resources().get("GPU", 0), job.gpus_per_worker
    if wanted * job.workers > there:
        raise ValueError(
            f"{job.workers} workers with {wanted:g} GPUs each need "
            f"{wanted * job.workers:g}, and Ray has {there:g}; give fewer --workers or "
            "--gpus-per-worker"
        )
