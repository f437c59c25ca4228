from __future__ import annotations

import pytest

from captum_attnflow.solve._barrier.by_torch.passes import TorchPasses


@pytest.fixture
def passes():
    """What does the work on the edges."""
    return TorchPasses
