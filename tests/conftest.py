from __future__ import annotations

import os

import pytest
import torch
from hypothesis import settings

from captum_attnflow.demo import load_demo_model
from captum_attnflow.pipelines.text_classification import TextClassifier

# The same examples in every run; HYPOTHESIS_PROFILE=explore looks for new ones.
settings.register_profile("fixed", derandomize=True)
settings.register_profile("explore", print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the processors
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def demo() -> TextClassifier:
    return TextClassifier(*load_demo_model())
