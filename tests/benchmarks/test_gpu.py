"""What a GPU takes for a long network, and for flows beside the model's own passes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from networks import attention_network, on_gpu
from race import Contestant
from transformers import BertConfig, BertForSequenceClassification

from captum_attnflow import (
    BarrierSolver,
    LayerGeneralizedAttentionFlow,
    solve_flow,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def finished(run: Callable[[], object]) -> Contestant:
    """Time a run until the device has done all of it."""

    def timed() -> None:
        run()
        torch.cuda.synchronize()

    return Contestant(timed)


def test_long_network(race):
    network = on_gpu(attention_network(32, 2048))
    race(
        "one maximum flow at (32, 2048) on a GPU, every position read out",
        {"barrier": finished(lambda: solve_flow(network))},
        {},
        rounds=3,
    )


def test_flow_beside_the_model(race):
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig()).eval().cuda()
    ids = torch.randint(1000, 30000, (32, 512)).cuda()

    def forward(ids):
        return model(ids).logits

    def passes():
        model.zero_grad()
        forward(ids)[:, 1].sum().backward()

    method = LayerGeneralizedAttentionFlow(forward, model.bert.embeddings)
    network = method.explain(ids, target=1).network
    at_once = BarrierSolver(max_edges=network.capacity.numel())
    race(
        "BERT-base, 512 tokens, batch 32, on a GPU",
        {
            "the flows": finished(lambda: solve_flow(network)),
            "the flows, all at once": finished(lambda: solve_flow(network, at_once)),
            "LayerGeneralizedAttentionFlow": finished(
                lambda: method.attribute(ids, target=1)
            ),
        },
        {"one forward and backward pass": finished(passes)},
        rounds=3,
    )


def test_decoder_of_30_layers(race):
    """Attention of the size of SmolLM2 at 1,000 tokens, the last position read out."""
    network = on_gpu(attention_network(30, 1000, causal=True, read_out=999))
    race(
        "one maximum flow at (30, 1000), causal, on a GPU, the last position read out",
        {"barrier": finished(lambda: solve_flow(network))},
        {},
        rounds=3,
    )
