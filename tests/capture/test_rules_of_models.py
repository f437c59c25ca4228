"""Relevance by rules is that of models written out by hand in the rules' rewrites."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from models import bert, decoder, encoder_decoder, token_ids, vision_model
from reference import lrp
from torch import Tensor, nn

from captum_attnflow import RelevanceFlow
from captum_attnflow.attr.attn_lrp import AttnLRP
from captum_attnflow.capture import capture_attention
from captum_attnflow.flow import message_tensor
from captum_attnflow.flow.scores import conserve

SHARES = {"attnlrp": 0.5, "cp-lrp": 0.0}


@dataclass
class Family:
    make: Callable[[str], nn.Module]
    replicate: Callable[..., lrp.Replica]
    read: Callable[[Tensor], Tensor] = lambda output: output[:, -1]
    implementations: tuple[str, ...] = ("eager", "sdpa")


FAMILIES = {
    "bert": Family(
        lambda implementation: bert(implementation=implementation),
        lrp.bert,
        lambda output: output,
    ),
    "gpt2": Family(lambda implementation: decoder("gpt2", implementation), lrp.gpt2),
    "llama": Family(lambda implementation: decoder("llama", implementation), lrp.llama),
    "gemma2": Family(
        lambda implementation: decoder("gemma2", implementation),
        lrp.gemma2,
        implementations=("eager",),
    ),
    "bloom": Family(
        lambda implementation: decoder("bloom", implementation),
        lrp.bloom,
        implementations=("eager",),
    ),
    "t5": Family(lambda implementation: encoder_decoder("T5", implementation), lrp.t5),
    "vit": Family(
        lambda implementation: vision_model("ViT", implementation),
        lrp.vit,
        lambda output: output[:, 0],
    ),
    "vit, mean": Family(
        lambda implementation: vision_model("ViT", implementation),
        lrp.vit,
        lambda output: output[:, 1:].mean(1),
    ),
}
TARGET = 1


def inputs_of(name: str) -> tuple[Tensor, ...]:
    if name.startswith("vit"):
        return (torch.randn(2, 3, 32, 32, dtype=torch.float64),)
    if name == "t5":
        return token_ids(2, 6), token_ids(2, 4)
    return (token_ids(2, 7),)


def forward_of(name: str, model: nn.Module) -> Callable[..., Tensor]:
    read = FAMILIES[name].read

    def forward(*inputs: Tensor) -> Tensor:
        if name == "t5":
            ids, decoder_ids = inputs
            return read(model(input_ids=ids, decoder_input_ids=decoder_ids).logits)
        output = model(*inputs)
        return read(
            output.last_hidden_state if name.startswith("vit") else output.logits
        )

    return forward


@dataclass
class Case:
    name: str
    share: float
    inputs: tuple[Tensor, ...]
    forward: Callable[..., Tensor]
    replica: lrp.Replica
    target: Tensor  # (B,), of the replica

    @classmethod
    @cache
    def of(cls, name: str, implementation: str, rules: str) -> Case:
        model, inputs = FAMILIES[name].make(implementation), inputs_of(name)
        replica = FAMILIES[name].replicate(model, *inputs, SHARES[rules])
        target = FAMILIES[name].read(replica.output)[:, TARGET]
        forward = forward_of(name, model)
        return cls(name, SHARES[rules], inputs, forward, replica, target)

    def messages(self) -> list[tuple[slice, slice, Tensor]]:
        """Positions of queries and keys and the messages, attention by attention."""
        of_encoder = slice(0, 6) if self.name == "t5" else slice(0, None)
        of_decoder, found = slice(6, 10), []
        for number, attention in enumerate(self.replica.attentions):
            queries = keys = of_encoder
            if self.name == "t5" and number >= 2:  # self, cross, self, cross
                queries = of_decoder
                keys = of_encoder if number % 2 else of_decoder
            messages = attention.messages(self.target.sum(), self.share)
            found.append((queries, keys, messages))
        return found

    def top(self) -> Tensor:
        """Relevance where the output is read, without direct edges."""
        output = self.target.detach()
        stream = self.replica.stream_relevance(self.target)
        top = torch.zeros(2, 10).double() if self.name == "t5" else stream * 0
        if self.name == "vit, mean":
            left = output - stream[:, 1:].sum(1)
            top[:, 1:] = stream[:, 1:] + left[:, None] / (stream.shape[1] - 1)
        else:
            top[:, 0 if self.name in ("bert", "vit") else -1] = output
        return top


def of_tokens(relevance: Tensor) -> Tensor:
    """Sum over features, or over the pixels of patches behind [CLS]."""
    if relevance.dim() == 3:
        return relevance.sum(-1)
    patches = relevance.unfold(2, 8, 8).unfold(3, 8, 8).sum((1, 4, 5)).flatten(1)
    return torch.cat([torch.zeros(len(patches), 1), patches], 1)


CASES = [
    pytest.param(name, implementation, rules, id=f"{name}-{implementation}-{rules}")
    for name, family in FAMILIES.items()
    for implementation in family.implementations
    for rules in SHARES
]


def close(found: Tensor, expected: Tensor) -> None:
    """To 1e-5 of the largest; BLOOM's softmax is of float32."""
    limit = 1e-5 * expected.abs().max().item()
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-5, atol=limit)


@pytest.mark.parametrize(("name", "implementation", "rules"), CASES)
def test_scores_are_input_times_the_gradient_of_the_rewritten_model(
    name, implementation, rules
):
    case = Case.of(name, implementation, rules)
    close(case.target.detach(), case.forward(*case.inputs)[:, TARGET].detach())
    expected = case.replica.scores(case.target)
    single = len(case.inputs) == 1
    scores = AttnLRP(case.forward, rules=rules).attribute(
        case.inputs[0] if single else case.inputs, target=TARGET
    )
    for x, found, of_input in zip(
        case.inputs, (scores,) if single else scores, expected, strict=True
    ):
        close(found, of_input if x.is_floating_point() else of_input.sum(-1))


@pytest.mark.parametrize(("name", "implementation", "rules"), CASES)
def test_messages_and_their_flow_are_those_of_the_rewritten_model(
    name, implementation, rules
):
    case = Case.of(name, implementation, rules)
    record = capture_attention(case.forward, case.inputs, TARGET, rules=rules)
    found, expected = message_tensor(record), case.messages()
    for number, (queries, keys, messages) in enumerate(expected):
        close(found[:, number, queries, keys], messages)
        assert found[:, number].abs().sum().item() == pytest.approx(
            found[:, number, queries, keys].abs().sum().item()
        )
    close(record.output, case.target.detach())
    scores = conserve(found, case.top()).scores
    close(scores, lrp.conserved_scores(expected, case.top()))


@pytest.mark.filterwarnings("ignore:.*follow the position:UserWarning")
@pytest.mark.parametrize(("name", "implementation", "rules"), CASES)
def test_relevance_flow_is_half_of_it_and_half_direct_edges(
    name, implementation, rules
):
    case = Case.of(name, implementation, rules)
    single = len(case.inputs) == 1
    explanation = RelevanceFlow(case.forward, rules=rules).explain(
        case.inputs[0] if single else case.inputs, target=TARGET
    )
    if not single:  # an encoder-decoder has no direct edges
        assert explanation.direct is None
        expected = lrp.conserved_scores(list(case.messages()), case.top())
        close(explanation.scores, expected)
        return
    direct = torch.cat([of_tokens(x) for x in case.replica.scores(case.target)], 1) / 2
    close(explanation.direct, direct)
    halves = [(*where, messages / 2) for *where, messages in case.messages()]
    top = case.top()
    shared = len(top[0].nonzero()) > 1
    if shared:
        stream = case.replica.stream_relevance(case.target)[:, 1:] / 2
        left = case.target.detach() - direct.sum(1) - stream.sum(1)
        top[:, 1:] = stream + left[:, None] / stream.shape[1]
    else:
        top = top * (1 - direct.sum(1) / case.target.detach())[:, None]
    close(explanation.scores, lrp.conserved_scores(halves, top) + direct)
