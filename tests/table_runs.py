"""Runs of a table and of a study in processes that are killed.

In a module of its own: a process that is started anew can import this one by name, and
no file of tests, whose names pytest makes up.
"""

from __future__ import annotations

import os

import torch

from captum_attnflow.study import Study, run_study
from captum_attnflow.tables import TableJob, explain_table


def explain_on(address: str | None, job: TableJob) -> None:
    """Explain a table in this process, or on the Ray of an address."""
    _begin(address)
    explain_table(job)


def study_on(address: str | None, study: Study) -> None:
    """Run a study in this process, or on the Ray of an address."""
    _begin(address)
    run_study(study)


def _begin(address: str | None) -> None:
    torch.set_num_threads(1)
    if address is not None:
        os.environ["RAY_ADDRESS"] = address
