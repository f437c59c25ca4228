"""Runs of a table and of a study in processes that are killed.

In a module of its own: a process that is started anew can import this one by name, and
no file of tests, whose names pytest makes up.
"""

from __future__ import annotations

import os

import torch

from captum_attnflow.study import Study, run_study
from captum_attnflow.tables import TableJob, explain_table


def ray_at(address: str) -> dict[str, str]:
    """The environment of a process that is to use the Ray of an address.

    Starting one sets variables, such as that of its authentication, which a process
    that is forked from an older one does not have.
    """
    of_ray = {k: v for k, v in os.environ.items() if k.startswith("RAY_")}
    return {**of_ray, "RAY_ADDRESS": address}


def explain_on(environment: dict[str, str], job: TableJob) -> None:
    """Explain a table in this process."""
    _begin(environment)
    explain_table(job)


def study_on(environment: dict[str, str], study: Study) -> None:
    """Run a study in this process."""
    _begin(environment)
    run_study(study)


def _begin(environment: dict[str, str]) -> None:
    torch.set_num_threads(1)
    os.environ.update(environment)
