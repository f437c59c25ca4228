from __future__ import annotations

import pytest
import torch

from captum_attnflow.demo import load_demo_model
from captum_attnflow.text import TextClassifier


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def demo() -> TextClassifier:
    return TextClassifier(*load_demo_model())
