from __future__ import annotations

import pytest
import torch
from networks import attention_network

from captum_attnflow import solve_flow
from captum_attnflow.flow.solvers.barrier import problem as module
from captum_attnflow.flow.solvers.barrier.problem import Workspace


@pytest.fixture
def workspace():
    return Workspace()


def addresses(array):
    start = array.data_ptr()
    return range(start, start + array.nbytes)


def take_three(workspace):
    with workspace.frame(1024):
        first = workspace.empty((3, 5), like=torch.empty(0, dtype=torch.float64))
        with workspace.frame():
            inner = workspace.empty((100,), like=torch.empty(0))
        second = workspace.empty((7,), like=torch.empty(0))
    return first, inner, second


def test_arrays_have_the_shape_and_dtype_asked_for(workspace):
    for _ in range(2):
        first, inner, second = take_three(workspace)
        assert (first.shape, first.dtype) == ((3, 5), torch.float64)
        assert (inner.shape, inner.dtype) == ((100,), torch.float32)
        assert (second.shape, second.dtype) == ((7,), torch.float32)


def test_memory_of_a_frame_is_used_again_after_it_and_not_within(workspace):
    before = take_three(workspace)
    again = take_three(workspace)
    assert [a.data_ptr() for a in before] == [a.data_ptr() for a in again]
    first, inner, second = map(addresses, again)
    assert inner.start == second.start
    assert first.stop <= second.start


def test_memory_is_taken_back_after_an_error(workspace):
    def fail():
        with workspace.frame(1024):
            workspace.empty((10,), like=torch.empty(0))
            raise RuntimeError("wrong")

    before, *_ = take_three(workspace)
    with pytest.raises(RuntimeError, match="wrong"):
        fail()
    after, *_ = take_three(workspace)
    assert after.data_ptr() == before.data_ptr()


def test_arrays_start_at_cache_lines_of_their_own(workspace):
    with workspace.frame(1024):
        first = workspace.empty((3,), like=torch.empty(0))
        second = workspace.empty((3,), like=torch.empty(0))
    assert first.data_ptr() % 64 == 0
    assert second.data_ptr() - first.data_ptr() == 64


def test_a_frame_within_another_takes_what_is_there(workspace):
    with workspace.frame(64):
        outer = workspace.empty((16,), like=torch.empty(0))
        with workspace.frame(1024):
            inner = workspace.empty((16,), like=torch.empty(0))
        with workspace.frame(1024):
            pass
    assert inner.untyped_storage().nbytes() == inner.nbytes
    assert take_three(workspace)[0].data_ptr() != outer.data_ptr()


def test_an_array_outside_of_all_frames_is_its_own(workspace):
    take_three(workspace)
    alone = workspace.empty((16,), like=torch.empty(0))
    assert alone.untyped_storage().nbytes() == alone.nbytes
    with workspace.frame(2048):
        array = workspace.empty((512,), like=torch.empty(0))
    assert array.untyped_storage().nbytes() == 2048


def test_memory_made_under_inference_mode_serves_others(workspace):
    with torch.inference_mode():
        take_three(workspace)
    first, *_ = take_three(workspace)
    first.fill_(1.0).requires_grad_()


def test_no_more_than_the_limit_is_kept(workspace, monkeypatch):
    monkeypatch.setattr(module, "_MOST_KEPT_BYTES", 1023)
    for _ in range(2):
        first, inner, _ = take_three(workspace)
        assert first.untyped_storage().data_ptr() == inner.untyped_storage().data_ptr()
        assert workspace._memory.numel() == 0


@pytest.mark.parametrize("size", [(2, 8, 2), (2, 4, 1000), (3, 96, 1), (3, 96, 3)])
def test_a_solve_takes_no_more_than_it_announces(monkeypatch, size):
    n_layers, n_tokens, n_networks = size
    network = attention_network(n_layers, n_tokens, n_networks=n_networks)
    network.capacity[:, 0, 0, 0] = torch.inf
    handed_out = []
    empty = Workspace.empty

    def watch(self, shape, like):
        array = empty(self, shape, like)
        handed_out.append(array.untyped_storage().data_ptr())
        return array

    monkeypatch.setattr(Workspace, "empty", watch)
    workspace = module.workspace()
    monkeypatch.setattr(workspace, "_memory", torch.empty(0, dtype=torch.uint8))
    solve_flow(network)
    assert set(handed_out) == {workspace._memory.data_ptr()}


def test_no_answer_shares_the_workspace():
    for _ in range(2):
        solution = solve_flow(attention_network(3, 8, n_networks=2))
    before = {name: value.clone() for name, value in vars(solution).items()}
    module.workspace()._memory.fill_(255)
    for name, value in vars(solution).items():
        torch.testing.assert_close(value, before[name], msg=name)
