from __future__ import annotations

import pytest
import torch
import transformers
from models import ENCODER_DECODERS, TorchTransformer, encoder_decoder, token_ids
from torch import nn

from captum_attnflow.capture import (
    Route,
    UnsupportedAttentionError,
    capture_attention,
)

ROUTES = ((0, 0), (0, 0), (1, 1), (1, 0), (1, 1), (1, 0))


def forward_of(model):
    def forward(encoder_ids, decoder_ids):
        output = model(input_ids=encoder_ids, decoder_input_ids=decoder_ids)
        return output.logits[:, -1]

    return forward


@pytest.mark.parametrize("family", ENCODER_DECODERS)
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("lengths", [(6, 6), (7, 4), (3, 5)])
def test_maps_and_gradients_equal_those_of_the_eager_model(
    family, implementation, lengths
):
    encoder_ids, decoder_ids = (token_ids(2, length) for length in lengths)
    model = encoder_decoder(family, implementation)
    record = capture_attention(forward_of(model), (encoder_ids, decoder_ids), 3)

    eager = encoder_decoder(family, "eager").requires_grad_(True)
    output = eager(
        input_ids=encoder_ids, decoder_input_ids=decoder_ids, output_attentions=True
    )
    maps = [*output.encoder_attentions]
    for pair in zip(output.decoder_attentions, output.cross_attentions, strict=True):
        maps.extend(pair)
    gradients = torch.autograd.grad(output.logits[:, -1, 3].sum(), maps)
    assert record.routes == ROUTES
    for mine, theirs in zip(
        record.weights + record.gradients, [*maps, *gradients], strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_each_input_is_found_where_it_enters_though_all_lengths_are_equal(family):
    encoder_ids, decoder_ids = token_ids(2, 5), token_ids(2, 5)
    forward = forward_of(encoder_decoder(family))
    record = capture_attention(forward, (encoder_ids, decoder_ids), 3)
    assert [sequence.inputs for sequence in record.sequences] == [(0,), (1,)]
    record = capture_attention(
        lambda decoder, encoder: forward(encoder, decoder),
        (decoder_ids, encoder_ids),
        3,
    )
    assert [sequence.inputs for sequence in record.sequences] == [(1,), (0,)]
    both = torch.stack([encoder_ids, decoder_ids], 1)  # views of one storage
    record = capture_attention(forward, (both[:, 0], both[:, 1]), 3)
    assert [sequence.inputs for sequence in record.sequences] == [(0,), (1,)]
    record = capture_attention(forward, (encoder_ids, encoder_ids), 3)
    assert [sequence.inputs for sequence in record.sequences] == [(0,), (1,)]


@pytest.mark.parametrize("form", ["ids", "embeddings", "parts of one tensor"])
def test_sides_embedded_before_the_encoder_runs_are_told_apart(form):
    model, ids = TorchTransformer(), (token_ids(2, 5), token_ids(2, 5))

    def from_embeddings(source, target):
        # The decoder's side enters the graph first.
        hidden = model.transformer(tgt=target * 1, src=source * 1)
        return model.head(hidden[:, -1])

    if form == "ids":
        record = capture_attention(model, ids, 1)
    else:
        embeddings = (model.source(ids[0]), model.target(ids[1]))
        if form == "parts of one tensor":
            embeddings = torch.stack(embeddings).unbind()
        record = capture_attention(from_embeddings, embeddings, 1)
    assert record.routes == ROUTES
    assert [sequence.inputs for sequence in record.sequences] == [(0,), (1,)]


def test_minibatches_inside_the_forward_function_are_joined():
    model = encoder_decoder("T5")
    encoder_ids, decoder_ids = token_ids(5, 6), token_ids(5, 4)

    def in_chunks(encoder_ids, decoder_ids):
        parts = zip(encoder_ids.split(2), decoder_ids.split(2), strict=True)
        return torch.cat([forward_of(model)(*part) for part in parts])

    whole = capture_attention(forward_of(model), (encoder_ids, decoder_ids), 3)
    chunked = capture_attention(in_chunks, (encoder_ids, decoder_ids), 3)
    assert chunked.sequences == whole.sequences
    for mine, theirs in zip(
        chunked.weights + chunked.gradients,
        whole.weights + whole.gradients,
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


def test_encoder_states_that_were_computed_before_are_tokens_too():
    model = encoder_decoder("Bart")
    encoder_ids, decoder_ids = token_ids(2, 6), token_ids(2, 4)
    states = model.model.encoder(encoder_ids).last_hidden_state

    def forward(states, decoder_ids):
        outputs = transformers.modeling_outputs.BaseModelOutput(states)
        return model(encoder_outputs=outputs, decoder_input_ids=decoder_ids).logits[
            :, -1
        ]

    record = capture_attention(forward, (states, decoder_ids), 3)
    assert record.routes == ((1, 1), (1, 0), (1, 1), (1, 0))
    assert [tuple(s.__dict__.values()) for s in record.sequences] == [
        (6, (0,)),
        (4, (1,)),
    ]


def test_a_vision_encoder_with_a_text_decoder_is_one_network():
    common = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.ViTConfig(
            image_size=16, patch_size=8, intermediate_size=64, **common
        ),
        transformers.BertConfig(
            vocab_size=50,
            intermediate_size=64,
            is_decoder=True,
            add_cross_attention=True,
            **common,
        ),
    )
    model = transformers.VisionEncoderDecoderModel(config).double().eval()
    pixels, ids = torch.randn(2, 3, 16, 16).double(), token_ids(2, 5)
    record = capture_attention(
        lambda pixels, ids: model(pixels, decoder_input_ids=ids).logits[:, -1],
        (pixels, ids),
        3,
    )
    assert record.routes == ROUTES
    assert [(s.length, s.inputs) for s in record.sequences] == [(5, (0,)), (5, (1,))]


class Attend(nn.Module):
    def forward(self, queries, keys):
        return queries + (queries @ keys.mT).softmax(-1) @ keys


class TestRefusals:
    def test_co_attention(self):
        attend = Attend()

        def forward(one, other):
            one, other = attend(one, one), attend(other, other)
            one, other = attend(one, other), attend(other, one)
            return (one.sum((1, 2)) + other.sum((1, 2)))[:, None]

        inputs = (torch.randn(2, 5, 4), torch.randn(2, 3, 4))
        with pytest.raises(UnsupportedAttentionError, match="co-attention"):
            capture_attention(forward, inputs, 0)

    def test_three_sequences(self):
        attend = Attend()

        def forward(one, two, three):
            one, two, three = (attend(x, x) for x in (one, two, three))
            return attend(attend(three, one), two).sum((1, 2))

        inputs = tuple(torch.randn(2, 5, 4) for _ in range(3))
        with pytest.raises(UnsupportedAttentionError, match="3 sequences attend"):
            capture_attention(forward, inputs)

    def test_an_inner_layer_of_the_encoder(self):
        attend = Attend()

        def forward(source, target):
            inner = attend(source, source)
            last = attend(inner, inner)
            target = attend(attend(target, target), last)
            return attend(target, inner).sum((1, 2))

        inputs = (torch.randn(2, 5, 4), torch.randn(2, 3, 4))
        with pytest.raises(UnsupportedAttentionError, match="inner layer"):
            capture_attention(forward, inputs)


def test_an_encoder_alone_is_one_sequence():
    model = encoder_decoder("T5").encoder
    record = capture_attention(
        lambda ids: model(ids).last_hidden_state.sum((1, 2)), (token_ids(),)
    )
    assert record.routes == (Route(0, 0),) * 2
    assert [(s.length, s.inputs) for s in record.sequences] == [(10, (0,))]
