"""What happens where a batch does not fit into memory."""

from __future__ import annotations

import pytest
import torch
from models import bert, token_ids

from captum_attnflow import (
    GeneralizedAttentionFlow,
    LayerGeneralizedAttentionFlow,
    LayerRelevanceFlow,
    RelevanceFlow,
)
from captum_attnflow._memory import free_memory
from captum_attnflow.flow import information

CPU_ERROR = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate "
    "memory: you tried to allocate 1099511627776 bytes. Error code 12"
)
ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError(CPU_ERROR),
    RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
]


def forward_of_few_rows(model, n_rows, error):
    """A forward function that runs out of memory above so many rows."""
    rows_seen = []

    def forward(ids):
        logits = model(ids).logits
        rows_seen.append(len(ids))
        if len(ids) > n_rows:
            raise error
        return logits

    return forward, rows_seen


@pytest.mark.parametrize("error", ERRORS)
def test_rows_are_halved_until_they_fit_and_the_user_is_told(error):
    model = bert()
    ids = token_ids(5)
    forward, rows_seen = forward_of_few_rows(model, 2, error)
    with pytest.warns(UserWarning, match="internal_batch_size=2 saves") as caught:
        scores = GeneralizedAttentionFlow(forward).attribute(ids, target=0)
    assert caught[0].filename == __file__
    assert rows_seen == [5, 3, 2, 2, 1]
    expected = GeneralizedAttentionFlow(lambda ids: model(ids).logits).attribute(
        ids, target=0
    )
    torch.testing.assert_close(scores, expected)


@pytest.mark.filterwarnings("ignore:a forward and backward pass")
def test_paths_are_halved_by_whole_examples_and_then_by_their_points():
    model = bert()
    ids = token_ids(5)
    forward, rows_seen = forward_of_few_rows(model, 2, ERRORS[0])
    layer = model.bert.embeddings
    LayerRelevanceFlow(forward, layer, path_steps=2).attribute(ids, 3, target=0)
    assert rows_seen[:4] == [15, 6, 3, 2]


@pytest.mark.parametrize("method", [LayerGeneralizedAttentionFlow, LayerRelevanceFlow])
def test_a_layer_forgets_the_passes_that_failed(method):
    model = bert()
    ids = token_ids(4)
    forward, _ = forward_of_few_rows(model, 2, ERRORS[0])
    layer = model.bert.embeddings
    with pytest.warns(UserWarning, match="did not fit into memory"):
        scores = method(forward, layer).attribute(ids, target=0)
    expected = method(lambda ids: model(ids).logits, layer).attribute(ids, target=0)
    torch.testing.assert_close(scores, expected)


@pytest.mark.filterwarnings("ignore:a forward and backward pass")
@pytest.mark.parametrize(("n_examples", "at_once"), [(1, None), (4, 4), (4, None)])
def test_what_cannot_be_halved_fails_as_torch_says(n_examples, at_once):
    model = bert()
    forward, _ = forward_of_few_rows(model, 0, ERRORS[0])
    ids = token_ids(n_examples)
    gaf = GeneralizedAttentionFlow(forward)
    with pytest.raises(torch.OutOfMemoryError):
        gaf.attribute(ids, target=0, internal_batch_size=at_once)
    assert not any(module._forward_hooks for module in model.modules())


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    forward, rows_seen = forward_of_few_rows(bert(), 2, RuntimeError("of the model"))
    with pytest.raises(RuntimeError, match="of the model"):
        GeneralizedAttentionFlow(forward).attribute(token_ids(4), target=0)
    assert rows_seen == [4]


def test_a_network_without_room_is_refused_before_it_is_taken(monkeypatch):
    model, ids = bert(), token_ids(2, 10)
    free = 50 * 2 * 3 * 7**2  # for seven tokens
    monkeypatch.setattr(information, "free_memory", lambda device: free)
    monkeypatch.setattr(information, "_SMALL", 0)
    method = GeneralizedAttentionFlow(lambda ids: model(ids).logits)
    message = r"2 texts of 10 tokens and 3 layers needs .* at most 7 tokens would fit"
    with pytest.raises(ValueError, match=message):
        method.attribute(ids, target=0)
    assert method.attribute(ids[:, :7], target=0).shape == (2, 7)
    # The scores of a conserved flow need no network.
    relevance = RelevanceFlow(lambda ids: model(ids).logits)
    assert relevance.attribute(ids, target=0).shape == (2, 10)
    with pytest.raises(ValueError, match="would fit"):
        relevance.explain(ids, target=0)


def test_free_memory_is_no_more_than_the_machine_has():
    free = free_memory(torch.device("cpu"))
    if free is not None:
        assert 0 < free < 2**50
    assert free_memory(torch.device("meta")) is None
