"""DecompX and information flow routes, which follow vectors through the weights."""

from __future__ import annotations

import pytest
import torch
from models import classifier
from reference import vectors
from study.classifiers import CAUSAL, ENCODERS, batch_of, build
from transformers import BertConfig

from captum_attnflow.study import METHODS
from captum_attnflow.study.vectors import (
    Trace,
    classifier_parts,
    decompx,
    edges,
    information_flow_routes,
    read_weights,
)

UNGATED = [*ENCODERS, "GPT2"]
every_ungated = pytest.mark.parametrize("family", UNGATED)
every_family = pytest.mark.parametrize("family", [*ENCODERS, *CAUSAL])
every_replica = pytest.mark.parametrize("family", ["Bert", "GPT2"])
both = pytest.mark.parametrize("scores_of", [decompx, information_flow_routes])


def logits(batch):
    with torch.no_grad():
        return batch.forward(batch.ids, *batch.arguments)


def read_at(family: str, length: int) -> int:
    return length - 1 if family in CAUSAL else 0


class TestDecompX:
    @every_ungated
    def test_parts_sum_to_the_logits(self, family):
        batch = batch_of(build(family))
        weights = read_weights(batch.model, "decompx")
        trace, wanted = Trace.of(batch, weights), logits(batch)
        for text, length in enumerate(batch.lengths):
            seen = trace.of_text(text, torch.arange(length))
            parts = classifier_parts(weights, seen, read_at(family, length))
            assert parts.shape == (length, 2)
            torch.testing.assert_close(parts.sum(0), wanted[text], rtol=0, atol=1e-9)

    @every_ungated
    def test_scores_are_parts_of_the_predicted_class(self, family):
        batch = batch_of(build(family))
        selected = logits(batch)[torch.arange(2), batch.predicted]
        scores = decompx(batch)
        torch.testing.assert_close(scores.sum(1), selected, rtol=0, atol=1e-9)
        assert not scores[batch.padding].any()

    @every_replica
    def test_scores_equal_a_replica_by_loops(self, family):
        batch = batch_of(build(family), (6, 4))
        scores = decompx(batch)
        for text, length in enumerate(batch.lengths):
            ids = batch.ids[text, :length].tolist()
            parts = vectors.decompx(batch.model, ids, read_at(family, length))
            wanted = torch.tensor(parts)[:, batch.predicted[text]]
            torch.testing.assert_close(scores[text, :length], wanted)

    def test_single_precision_keeps_five_digits(self):
        batch = batch_of(build("Bert").float())
        selected = logits(batch)[torch.arange(2), batch.predicted]
        scores = decompx(batch)
        assert scores.dtype == torch.float32
        torch.testing.assert_close(scores.sum(1), selected, rtol=1e-5, atol=1e-5)

    def test_wide_layers_in_parts_change_nothing(self, monkeypatch):
        batch = batch_of(build("Bert"))
        whole = decompx(batch)
        monkeypatch.setattr("captum_attnflow.study.vectors._MAX_NUMBERS_AT_ONCE", 1)
        torch.testing.assert_close(decompx(batch), whole)

    @pytest.mark.parametrize("family", ["Llama", "Qwen2"])
    def test_gated_layers_are_refused(self, family):
        with pytest.raises(ValueError, match=r"no rule for the gated.*Leave decompx"):
            decompx(batch_of(build(family)))


class TestInformationFlowRoutes:
    @every_family
    def test_flow_is_shared_out_whole(self, family):
        batch = batch_of(build(family))
        scores = information_flow_routes(batch)
        torch.testing.assert_close(scores.sum(1), torch.ones(2).double())
        assert (scores >= 0).all()
        assert not scores[batch.padding].any()

    @every_replica
    def test_scores_equal_a_replica_by_loops(self, family):
        batch = batch_of(build(family), (6, 4))
        scores = information_flow_routes(batch)
        for text, length in enumerate(batch.lengths):
            ids = batch.ids[text, :length].tolist()
            wanted = vectors.information_flow_routes(
                batch.model, ids, read_at(family, length)
            )
            torch.testing.assert_close(scores[text, :length], torch.tensor(wanted))

    @every_family
    def test_messages_sum_to_what_the_sublayer_puts_out(self, family):
        """What edges compare messages with is the model's own residual sum."""
        batch = batch_of(build(family, "eager"), (7,))
        weights = read_weights(batch.model, "ifr")
        trace, seen = Trace.of(batch, weights), []
        block = weights.blocks[0]
        handle = block.attention.register_forward_hook(
            lambda module, taken, returned: seen.append(returned[0])
        )
        logits(batch)
        handle.remove()
        [output] = seen
        if family in ("Bert", "Electra", "Roberta"):  # others project it themselves
            output = block.output(output)
        taken = trace.streams[0]
        taken = block.norm(taken) if weights.norm_first else taken
        heads = trace.maps[0]
        values = block.values(heads.shape[1])(taken).unflatten(-1, (heads.shape[1], -1))
        mixed = torch.einsum("bhij,bjhd->bihd", heads, values).flatten(2)
        # RMSNorm of transformers computes in single precision.
        torch.testing.assert_close(block.output(mixed), output, rtol=1e-4, atol=1e-5)

    def test_rows_in_parts_change_nothing(self, monkeypatch):
        batch = batch_of(build("GPT2"))
        whole = information_flow_routes(batch)
        monkeypatch.setattr("captum_attnflow.study.vectors._MAX_NUMBERS_AT_ONCE", 1)
        torch.testing.assert_close(information_flow_routes(batch), whole)

    def test_a_sum_that_no_message_is_near_stays_where_it_is(self):
        batch = batch_of(build("Bert"), (3,))
        weights = read_weights(batch.model, "ifr")
        block = weights.blocks[0]
        # The bias outweighs all: every message makes the rest of the sum longer.
        block.output.bias.copy_(-(10 ** torch.arange(32.0)))
        stream = torch.ones(3, 32).double()
        found = edges(block, stream, torch.zeros(4, 3, 3).double(), norm_first=False)
        assert torch.equal(found, torch.eye(3).double())


@pytest.mark.parametrize(
    ("family", "scores_of"),
    [("GPT2", decompx), *((family, information_flow_routes) for family in CAUSAL)],
)
def test_later_tokens_of_a_causal_model_get_nothing(family, scores_of):
    batch = batch_of(build(family), (8,))
    longer = batch.ids.clone()
    longer[0, 5:] = 0  # read at the fifth token
    scores = scores_of(type(batch)(**{**vars(batch), "ids": longer}))
    assert not scores[0, 5:].any()
    assert scores[0, :5].any()


@both
@pytest.mark.parametrize("family", UNGATED)
def test_padding_changes_nothing(family, scores_of):
    batch = batch_of(build(family), (8, 5))
    scores = scores_of(batch)
    for text in range(2):
        alone = scores_of(batch.rows([text]))[0]
        torch.testing.assert_close(scores[text, : len(alone)], alone)


@both
def test_other_models_are_refused(scores_of):
    batch = batch_of(build("Bert"))
    unknown = classifier("Albert", dtype=torch.float64)
    with pytest.raises(ValueError, match=r"not of AlbertForSeq.*Leave .* out"):
        scores_of(type(batch)(**{**vars(batch), "model": unknown}))


@pytest.mark.parametrize("name", ["decompx", "ifr"])
def test_a_subclass_is_of_its_family_and_keeps_its_attention(name):
    class Mine(type(build("Bert"))):
        pass

    model = Mine(BertConfig(**build("Bert").config.to_diff_dict())).eval()
    model.set_attn_implementation("sdpa")
    batch = batch_of(model)
    assert METHODS[name].scores(batch).shape == batch.ids.shape
    assert model.config._attn_implementation == "sdpa"
    assert not any(module._forward_hooks for module in model.modules())
