from __future__ import annotations

import pytest
import torch

from captum_attnflow.flow.network import empty


@pytest.mark.parametrize("shape", [(0,), (3, 5), (1 << 10, 1 << 10)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bool])
def test_an_array_has_the_shape_and_dtype_asked_for(shape, dtype):
    array = empty(shape, like=torch.empty(0, dtype=dtype)).fill_(1)
    assert (array.shape, array.dtype) == (shape, dtype)
    assert array.is_contiguous()
    assert bool((array == 1).all())


def test_a_large_array_made_under_inference_mode_serves_otherwise():
    with torch.inference_mode():
        array = empty((1 << 20,), like=torch.empty(0))
    assert not array.is_inference()
    array.fill_(1.0)


def test_an_array_is_made_on_the_device_of_the_other():
    array = empty((1 << 12, 1 << 12), like=torch.empty(0, device="meta"))
    assert array.device.type == "meta"
