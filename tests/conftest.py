from __future__ import annotations

import gc
import os
from collections.abc import Generator, Iterator
from typing import Any

import pytest
import torch
from hypothesis import settings

from captum_attnflow.demo import load_demo_model
from captum_attnflow.flow import compile_kernels
from captum_attnflow.pipelines.text_classification import TextClassifier

# The same examples in every run; HYPOTHESIS_PROFILE=explore looks for new ones.
settings.register_profile("fixed", derandomize=True)
settings.register_profile("explore", print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the processors
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # and so do processes of theirs
    # Nothing is compiled by Inductor, which would start processes that import torch.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, Any, Any]:
    """Leave the 750,000 objects of what is imported out of garbage collection."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep the tests of a file on one worker, which makes their fixtures but once.

    A worker that is done takes half of what the other one has left.
    """
    if config.getvalue("dist") != "load":  # another than what -n means was asked for
        return None
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


@pytest.fixture(autouse=True, scope="session")
def _compiled() -> None:
    """Let no flow change its last digits when Numba's kernels are ready."""
    compile_kernels()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def demo() -> TextClassifier:
    return TextClassifier(*load_demo_model())


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """The address of one Ray for the tests, as one takes seconds to start."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # A busy machine starves them otherwise.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - Ray spells it so
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As the workers of Ray have; the last digits depend on it."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)
