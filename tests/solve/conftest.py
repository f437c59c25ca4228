from __future__ import annotations

import pytest

from captum_attnflow.solve._barrier import implementation
from captum_attnflow.solve._barrier.by_torch.passes import TorchPasses


@pytest.fixture(params=["numba", "torch"])
def passes(request, monkeypatch):
    """Each implementation of the work on the edges, as what all solves choose."""
    if request.param == "torch":
        monkeypatch.setattr(implementation, "numba_passes", lambda: None)
        return TorchPasses
    pytest.importorskip("numba")
    return implementation.numba_passes()
