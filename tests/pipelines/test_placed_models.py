"""Models split over devices, and models whose weights are quantised."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from captum.attr import TextTokenInput
from models import decoder, numbers_tokenizer
from torch import nn

import captum_attnflow
from captum_attnflow import GenerationAttribution, TextClassifier, TextGenerator
from captum_attnflow.capture import UnsupportedAttentionError

METHODS = ["RelevanceFlow", "AttnLRP", "GeneralizedAttentionFlow"]
every_method = pytest.mark.parametrize("method", METHODS)
# Warnings of the libraries' own about this machine's kernels.
quiet = pytest.mark.filterwarnings("ignore")


def scores_of(model, method):
    attribution = getattr(captum_attnflow, method)(model)
    generation = GenerationAttribution(attribution, numbers_tokenizer(), "logit")
    prompt = TextTokenInput("7 8 9 10", numbers_tokenizer())
    return generation.explain(prompt, "11 12").scores


def linears(model):
    return {
        name: part for name, part in model.named_modules() if type(part) is nn.Linear
    }


class TestSplitModels:
    """Every layer on another device, as far as one machine has any: its disk."""

    @pytest.fixture
    def folder(self, tmp_path):
        pytest.importorskip("accelerate", reason='needs the extra "devices"')
        decoder("llama").save_pretrained(tmp_path)
        numbers_tokenizer().save_pretrained(tmp_path)
        return tmp_path

    @every_method
    def test_scores_are_those_of_one_device(self, method, folder):
        split = {
            "model.embed_tokens": "cpu",
            "model.layers.0": "cpu",
            "model.layers.1": "disk",
            "model.layers.2": "cpu",
            "model.norm": "cpu",
            "model.rotary_emb": "cpu",
            "lm_head": "disk",
        }
        whole = TextGenerator.load(folder)
        loaded = TextGenerator.load(folder, device_map=split)
        weights = dict(loaded.model.named_parameters())
        assert weights["model.layers.1.self_attn.q_proj.weight"].is_meta  # on the disk
        expected, found = (
            one.explain(["7 8 9 10"], _NAMES[method], target="11 12")[0].explanation
            for one in (whole, loaded)
        )
        assert torch.equal(found.scores, expected.scores)

    def test_a_strategy_places_a_model(self, demo, tmp_path):
        pytest.importorskip("accelerate", reason='needs the extra "devices"')
        demo.model.save_pretrained(tmp_path)
        demo.tokenizer.save_pretrained(tmp_path)
        texts = ["a funny film"]
        [found] = TextClassifier.load(tmp_path, device_map="auto").explain(texts)
        assert [found] == TextClassifier.load(tmp_path).explain(texts)

    def test_hashing_weights_that_stay_on_the_disk_is_refused(self, folder):
        loaded = TextGenerator.load(
            folder, device_map={"model": "disk", "lm_head": "cpu"}
        )
        with pytest.raises(ValueError, match=r"weights .* on a disk.*without device"):
            loaded.provenance()

    def test_a_module_without_a_place_is_named(self, folder):
        with pytest.raises(ValueError, match=r"not be loaded.*any device.*layers.0"):
            TextGenerator.load(
                folder, device_map={"model.layers.1": "disk", "lm_head": "cpu"}
            )


_NAMES = {
    "RelevanceFlow": "relevance-flow",
    "AttnLRP": "attnlrp",
    "GeneralizedAttentionFlow": "generalized-attention-flow",
}


class TestQuantisedWeights:
    @every_method
    def test_integer_kernels_are_refused(self, method):
        quantised = torch.ao.quantization.quantize_dynamic(
            decoder("llama").float(), {nn.Linear}, dtype=torch.qint8
        )
        with pytest.raises(UnsupportedAttentionError, match=r"no gradient \(quantized"):
            scores_of(quantised, method)

    @quiet
    @every_method
    def test_activations_in_8_bits_are_refused(self, method):
        """Also where the head is not quantised, so that some gradient is left."""
        torchao = pytest.importorskip(
            "torchao.quantization", reason='needs the extra "quantized"'
        )
        model = decoder("llama").float()
        torchao.quantize_(model.model, torchao.Int8DynamicActivationInt8WeightConfig())
        with pytest.raises(UnsupportedAttentionError, match="linear by Int8Tensor"):
            scores_of(model, method)

    @quiet
    @every_method
    def test_8_bit_weights_are_explained_as_what_they_stand_for(self, method):
        torchao = pytest.importorskip(
            "torchao.quantization", reason='needs the extra "quantized"'
        )
        model = decoder("llama").float()
        restored = deepcopy(model)
        torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
        for name, part in linears(restored).items():
            part.weight.data = model.get_submodule(name).weight.dequantize()
        torch.testing.assert_close(
            scores_of(model, method), scores_of(restored, method), rtol=1e-4, atol=1e-5
        )

    @quiet
    @every_method
    def test_4_bit_weights_are_explained_as_what_they_stand_for(self, method):
        bitsandbytes = pytest.importorskip(
            "bitsandbytes", reason='needs the extra "quantized"'
        )
        model = decoder("llama").float()
        restored = deepcopy(model)
        for name, part in linears(model).items():
            if min(part.weight.shape) < 32:
                continue  # less than a block of weights that share a scale
            packed = bitsandbytes.nn.Linear4bit(
                part.in_features, part.out_features, bias=part.bias is not None
            )
            packed.weight = bitsandbytes.nn.Params4bit(
                part.weight.data, requires_grad=False, quant_type="nf4"
            )
            packed.bias = part.bias
            packed = packed.to("cpu")
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, packed)
            restored.get_submodule(
                name
            ).weight.data = bitsandbytes.functional.dequantize_4bit(
                packed.weight.data, packed.weight.quant_state
            )
        assert len(linears(model)) < len(linears(restored))
        torch.testing.assert_close(
            scores_of(model, method), scores_of(restored, method), rtol=1e-4, atol=1e-5
        )
