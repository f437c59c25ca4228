"""Captum's contract, for every class: what a pipeline may rely on."""

from __future__ import annotations

import copy
import inspect
import re
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from captum.attr import (
    IntegratedGradients,
    LayerIntegratedGradients,
    LLMGradientAttribution,
    NoiseTunnel,
    TextTokenInput,
)
from captum.metrics import infidelity, sensitivity_max
from models import (
    VOCABULARY,
    TorchEncoder,
    bert,
    causal_language_model,
    classifier,
    token_ids,
    vision_classifier,
)
from torch import Tensor, nn

import captum_attnflow
from captum_attnflow import (
    AttentionFlow,
    AttentionRollout,
    AttnLRP,
    CheferRelevance,
    GeneralizedAttentionFlow,
    LayerAttentionFlow,
    LayerAttentionRollout,
    LayerAttnLRP,
    LayerCheferRelevance,
    LayerGeneralizedAttentionFlow,
    LayerRelevanceFlow,
    LayerSLALOM,
    RelevanceFlow,
    UnsupportedAttentionError,
)

METHODS = [
    AttentionFlow,
    AttentionRollout,
    CheferRelevance,
    GeneralizedAttentionFlow,
    RelevanceFlow,
]
LAYER_METHODS = [
    LayerAttentionFlow,
    LayerAttentionRollout,
    LayerCheferRelevance,
    LayerGeneralizedAttentionFlow,
    LayerRelevanceFlow,
]
OPTIONS = [
    (RelevanceFlow, {"path_steps": 0}),
    (RelevanceFlow, {"rules": "cp-lrp"}),
    (RelevanceFlow, {"flow": "maximum"}),
    (RelevanceFlow, {"flow": "maximum", "rules": "gradient"}),
    (GeneralizedAttentionFlow, {"gradient": "attnlrp"}),
    (GeneralizedAttentionFlow, {"information": "GF"}),
    (GeneralizedAttentionFlow, {"information": "AF"}),
    (GeneralizedAttentionFlow, {"residual": 0.3}),
    (GeneralizedAttentionFlow, {"residual": "free"}),
    (GeneralizedAttentionFlow, {"residual": "free", "game": "independent"}),
    (GeneralizedAttentionFlow, {"solver": "networkx", "game": "independent"}),
    (AttentionFlow, {"game": "joint"}),
    *((method, {}) for method in METHODS),
]
every_method = pytest.mark.parametrize("method", METHODS)
every_layer_method = pytest.mark.parametrize("method", LAYER_METHODS)
every_option = pytest.mark.parametrize(("method", "options"), OPTIONS)


@pytest.fixture(scope="module")
def model():
    return bert()


@pytest.fixture
def forward(model):
    return lambda ids, mask=None: model(ids, attention_mask=mask).logits


@pytest.fixture
def forward_embeddings(model):
    return lambda embeddings: model(inputs_embeds=embeddings).logits


@pytest.fixture
def embeddings(model):
    return model.bert.embeddings.word_embeddings(token_ids(3, 7)).detach()


def test_public_names_are_these():
    assert captum_attnflow.__all__ == [
        "AnswerAttribution",
        "AttentionFlow",
        "AttentionRollout",
        "AttnLRP",
        "BarrierSolver",
        "CheferRelevance",
        "DinicSolver",
        "Explanation",
        "FlowError",
        "FlowSolution",
        "GeneralizedAttentionFlow",
        "GeneratedFromImage",
        "GeneratedText",
        "GenerationAttribution",
        "GenerationExplanation",
        "ImageAttribution",
        "ImageClassifier",
        "ImageTextGenerator",
        "LabelledWords",
        "LayerAttentionFlow",
        "LayerAttentionRollout",
        "LayerAttnLRP",
        "LayerCheferRelevance",
        "LayerGeneralizedAttentionFlow",
        "LayerRelevanceFlow",
        "LayerSLALOM",
        "LayeredNetwork",
        "NetworkXSolver",
        "QuestionAnswerer",
        "RelevanceFlow",
        "SLALOM",
        "SciPySolver",
        "SentenceSimilarity",
        "SideAttribution",
        "SimilarityAttribution",
        "SlalomExplanation",
        "TextAttribution",
        "TextClassifier",
        "TextGenerator",
        "TokenClassifier",
        "UnsupportedAttentionError",
        "WordAttribution",
        "__version__",
        "solve_flow",
    ]


class TestSignatures:
    @pytest.mark.parametrize(
        ("mine", "captums"),
        [(method, IntegratedGradients) for method in [*METHODS, AttnLRP]]
        + [
            (method, LayerIntegratedGradients)
            for method in [*LAYER_METHODS, LayerAttnLRP]
        ],
    )
    @pytest.mark.parametrize("function", ["__init__", "attribute"])
    def test_arguments_start_as_captums_do(self, mine, captums, function):
        theirs = inspect.signature(getattr(captums, function)).parameters.values()
        parameters = list(
            inspect.signature(getattr(mine, function)).parameters.values()
        )
        shared = parameters[: len(theirs)]
        for own, other in zip(shared, theirs, strict=True):
            assert (own.name, own.default) == (other.name, other.default)
        for extra in parameters[len(theirs) :]:
            assert extra.kind is inspect.Parameter.KEYWORD_ONLY
            assert extra.default is not inspect.Parameter.empty

    @pytest.mark.parametrize("method", METHODS + LAYER_METHODS)
    def test_explain_takes_the_arguments_of_attribute_that_it_reads(self, method):
        explain = inspect.signature(method.explain).parameters
        attribute = inspect.signature(method.attribute).parameters
        first = ["self", "inputs", "baselines", "target", "additional_forward_args"]
        assert list(explain) == [*first, "internal_batch_size"]
        assert [explain[name] for name in first] == [attribute[name] for name in first]

    @pytest.mark.parametrize("method", LAYER_METHODS)
    def test_constructors_name_their_options(self, method):
        own = inspect.signature(method.__mro__[3].__init__).parameters
        names = list(inspect.signature(method).parameters)
        first = ["forward_func", "layer", "device_ids", "multiply_by_inputs"]
        assert names == [*first, *list(own)[3:]]
        with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
            method(len, torch.nn.Identity(), colour="red")

    @pytest.mark.parametrize(
        "method", [*METHODS, AttnLRP, *LAYER_METHODS, LayerAttnLRP]
    )
    def test_wrong_arguments_name_the_class_that_is_called(self, method):
        """Not the base that holds the method."""
        given = (nn.Identity(),) * (2 if method.__name__.startswith("Layer") else 1)
        for call in (method, *self._calls_of(method(*given))):
            name = method.__name__ + ("" if call is method else f".{call.__name__}")
            words = rf"^{name}(\.__init__)?\(\).* unexpected .*'foo'"
            with pytest.raises(TypeError, match=words):
                call(*(given if call is method else ()), foo=1)

    @staticmethod
    def _calls_of(method):
        names = ("attribute", "compute_convergence_delta", "explain", "score_targets")
        return [getattr(method, name) for name in names if hasattr(method, name)]

    @pytest.mark.parametrize("method", METHODS + LAYER_METHODS)
    def test_attribute_is_wrapped_as_noise_tunnel_expects(self, method):
        assert method.attribute.__wrapped__
        assert method.compute_convergence_delta.__wrapped__

    @every_method
    def test_delta_is_announced(self, method):
        assert method(lambda x: x).has_convergence_delta()


class TestShapes:
    @every_method
    @pytest.mark.parametrize(
        ("dtype", "expected"),
        [
            (torch.float64, torch.float64),
            (torch.float32, torch.float32),
            (torch.bfloat16, torch.float32),
        ],
    )
    def test_embeddings_give_their_shape_and_dtype(self, method, dtype, expected):
        model = bert(dtype)
        embeddings = torch.randn(2, 6, 32, dtype=dtype)
        attributions = method(lambda e: model(inputs_embeds=e).logits).attribute(
            embeddings, target=1
        )
        assert attributions.shape == embeddings.shape
        assert attributions.dtype == expected
        assert attributions.is_contiguous()
        assert not attributions.requires_grad
        assert attributions.isfinite().all()

    @every_method
    def test_ids_give_float32_scores(self, method, forward):
        ids = token_ids()
        attributions = method(forward).attribute(ids, target=1)
        assert attributions.shape == ids.shape
        assert attributions.dtype == torch.float32

    @every_method
    def test_sum_over_features_is_the_tokens_score(
        self, method, forward_embeddings, embeddings
    ):
        attribution = method(forward_embeddings)
        scores = attribution.explain(embeddings, target=1).scores
        attributions = attribution.attribute(embeddings, target=1)
        torch.testing.assert_close(attributions.sum(-1), scores)

    @every_method
    def test_tuples_come_back_as_tuples(self, method, forward):
        ids = token_ids()
        (only,) = method(forward).attribute((ids,), target=1)
        assert torch.equal(only, method(forward).attribute(ids, target=1))

    @every_layer_method
    def test_layer_output_gives_the_shape(self, method, model, forward):
        ids = token_ids()
        layer = model.bert.embeddings
        alone = method(forward, layer).attribute(ids, target=1)
        assert alone.shape == (2, 10, 32)
        assert alone.dtype == torch.float64
        (listed,) = method(forward, [layer]).attribute(ids, target=1)
        assert torch.equal(alone, listed)

    @every_layer_method
    def test_layer_input_gives_the_shape(self, method, model, forward):
        intermediate = model.bert.encoder.layer[1].output.dense
        attributions = method(forward, intermediate).attribute(
            token_ids(), target=1, attribute_to_layer_input=True
        )
        assert attributions.shape == (2, 10, 64)

    @every_layer_method
    def test_layer_of_several_tensors_gives_a_tuple(self, method):
        class WithMean(nn.Module):
            def forward(self, hidden):
                return hidden, hidden.mean(1)

        model, layer = TorchEncoder(), WithMean()

        def forward(ids):
            hidden, mean = layer(model.embedding(ids))
            return model.head(model.encoder(hidden)[:, 0] + mean)

        attribution = method(forward, layer)
        hidden, mean = attribution.attribute(token_ids(), target=1)
        assert hidden.shape == (2, 10, 32)
        assert hidden.any()
        assert mean.shape == (2, 32)
        assert not mean.any()

    @every_layer_method
    def test_word_embeddings_take_ids_as_layer_input(self, method, model, forward):
        ids = token_ids()
        scores = method(forward, model.bert.embeddings.word_embeddings).attribute(
            ids, target=1, attribute_to_layer_input=True
        )
        assert scores.shape == ids.shape

    @every_layer_method
    def test_shared_layer_that_runs_thrice_gives_one_attribution(self, method):
        model = classifier("Albert", dtype=torch.float64)
        layer = model.albert.encoder.albert_layer_groups[0].albert_layers[0]
        attributions = method(lambda ids: model(ids).logits, layer.ffn).attribute(
            token_ids(), target=1
        )
        assert attributions.shape == (2, 10, 64)

    @every_method
    def test_pixels_share_the_score_of_their_patch(self, method):
        model = vision_classifier()
        pixels = torch.randn(2, 3, 32, 32).double()
        attribution = method(lambda pixels: model(pixels).logits)
        attributions = attribution.attribute(pixels, target=1)
        scores = attribution.explain(pixels, target=1).scores[:, 1:]
        assert attributions.shape == pixels.shape
        per_patch = attributions.unfold(2, 8, 8).unfold(3, 8, 8).sum((1, 4, 5))
        torch.testing.assert_close(per_patch.flatten(1), scores)

    def test_layer_of_a_vision_model_keeps_the_class_token(self):
        model = vision_classifier()
        attributions = LayerGeneralizedAttentionFlow(
            lambda pixels: model(pixels).logits, model.vit.embeddings
        ).attribute(torch.randn(2, 3, 32, 32).double(), target=1)
        assert attributions.shape == (2, 17, 32)


class TestRows:
    @every_option
    def test_padded_batch_equals_its_rows_alone(self, method, options, forward):
        ids = token_ids(2, 9)
        mask = torch.ones_like(ids)
        mask[1, 6:] = 0
        attribution = method(forward, **options)
        together = attribution.explain(
            ids, target=1, additional_forward_args=(mask,)
        ).scores
        assert not together[1, 6:].any()
        for row, length in ((0, 9), (1, 6)):
            part = (slice(row, row + 1), slice(length))
            alone = attribution.explain(
                ids[part], target=1, additional_forward_args=(mask[part],)
            ).scores
            error = (together[row, :length] - alone[0]).abs().max()
            assert error <= 1e-6 * alone.abs().sum()

    @every_option
    def test_fused_and_eager_attention_agree(self, method, options):
        ids = token_ids()
        scores = [
            method(lambda ids, model=model: model(ids).logits, **options)
            .explain(ids, target=1)
            .scores
            for model in (bert(), bert(implementation="eager"))
        ]
        assert (scores[0] - scores[1]).abs().max() <= 1e-6 * scores[0].abs().sum()

    @every_option
    def test_order_of_the_tokens_does_not_matter(self, method, options):
        # Without position embeddings the model itself does not see the order.
        model = TorchEncoder()
        ids = token_ids(1, 8)
        order = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(7)])
        if options.get("solver") == "networkx" and options["game"] == "joint":
            pytest.skip("an exact joint flow is arbitrary")
        scores = method(model, **options).explain(ids, target=1).scores
        permuted = method(model, **options).explain(ids[:, order], target=1).scores
        assert (scores[:, order] - permuted).abs().max() <= 1e-6 * scores.abs().sum()

    @every_method
    @pytest.mark.parametrize("size", [1, 2, 5])
    def test_internal_batches_change_nothing(self, method, size, forward):
        ids, rows = token_ids(3, 6), []

        def counted(ids, mask):
            rows.append(len(ids))
            return forward(ids, mask)

        mask = torch.ones_like(ids)
        whole = method(forward).attribute(ids, None, [0, 1, 1], (mask,))
        parts = method(counted).attribute(
            ids, None, [0, 1, 1], (mask,), internal_batch_size=size
        )
        assert max(rows) <= size
        torch.testing.assert_close(parts, whole)

    @every_layer_method
    def test_internal_batches_keep_the_layers_shape(self, method, model, forward):
        layer = model.bert.embeddings
        attributions = method(forward, layer).attribute(
            token_ids(3, 6), target=1, internal_batch_size=2
        )
        assert attributions.shape == (3, 6, 32)

    def test_arguments_without_rows_pass_through_whole(self, model):
        seen = []

        def forward(ids, name, scale, scalar, nothing):
            seen.append((name, scale.shape, scalar, nothing))
            return model(ids).logits * scale.sum()

        extra = ("name", torch.ones(4), torch.tensor(2.0), None)
        GeneralizedAttentionFlow(forward).attribute(
            token_ids(3), None, 1, extra, internal_batch_size=2
        )
        assert seen == [("name", (4,), torch.tensor(2.0), None)] * 2


class TestTargets:
    @pytest.mark.parametrize(
        ("target", "one_by_one"),
        [
            (1, [1, 1, 1]),
            (torch.tensor(1), [1, 1, 1]),
            (torch.tensor([1]), [1, 1, 1]),
            (torch.tensor([0, 1, 0]), [0, 1, 0]),
            ([0, 1, 0], [0, 1, 0]),
        ],
    )
    def test_batched_targets_equal_one_by_one(self, forward, target, one_by_one):
        ids = token_ids(3, 6)
        gaf = GeneralizedAttentionFlow(forward)
        together = gaf.attribute(ids, target=target)
        for row, single in enumerate(one_by_one):
            alone = gaf.attribute(ids[row : row + 1], target=single)
            torch.testing.assert_close(together[row : row + 1], alone)

    @pytest.mark.parametrize("target", [(2, 1), [(2, 1), (0, 0), (5, 1)]])
    def test_tuples_select_from_outputs_of_more_dimensions(self, model, target):
        ids = token_ids(3, 6)
        head = torch.randn(32, 2).double()
        tagger = GeneralizedAttentionFlow(lambda ids: model.bert(ids)[0] @ head)
        together = tagger.attribute(ids, target=target)
        for row in range(3):
            single = target[row] if isinstance(target, list) else target
            alone = tagger.attribute(ids[row : row + 1], target=single)
            torch.testing.assert_close(together[row : row + 1], alone)
            explanation = tagger.explain(ids[row : row + 1], target=single)
            assert explanation.network.sink[0].nonzero().tolist() == [[single[0]]]

    def test_none_takes_an_output_of_one_number(self, model):
        ids = token_ids()
        for last in (lambda x: x[:, 1], lambda x: x[:, 1:]):
            scores = GeneralizedAttentionFlow(
                lambda ids, last=last: last(model(ids).logits)
            ).attribute(ids)
            expected = GeneralizedAttentionFlow(lambda ids: model(ids).logits)
            torch.testing.assert_close(scores, expected.attribute(ids, target=1))


class TestDelta:
    @every_method
    def test_delta_is_the_efficiency_residual(self, method, forward):
        ids = token_ids()
        attribution = method(forward)
        attributions, delta = attribution.attribute(
            ids, target=1, return_convergence_delta=True
        )
        explanation = attribution.explain(ids, target=1)
        assert delta.shape == (2,)
        assert delta.dtype == attributions.dtype
        expected = explanation.scores.sum(1) - explanation.flow_value
        torch.testing.assert_close(delta, expected.float())
        recomputed = attribution.compute_convergence_delta(
            attributions, 0, ids, target=1
        )
        torch.testing.assert_close(recomputed, delta, atol=1e-5, rtol=1e-4)

    @pytest.mark.parametrize("information", ["AF", "GF", "AGF"])
    def test_joint_scores_sum_to_the_flow_value(self, forward, information):
        gaf = GeneralizedAttentionFlow(forward, information=information)
        explanation = gaf.explain(token_ids(), target=1)
        assert (explanation.delta.abs() <= 1e-9 * explanation.flow_value).all()

    def test_rollout_sums_to_one(self, forward):
        scores = AttentionRollout(forward).attribute(token_ids(), target=1)
        torch.testing.assert_close(scores.sum(1), torch.ones(2))


class TestStateAndSurroundings:
    @every_method
    def test_works_under_no_grad_with_frozen_parameters(self, method):
        model = bert()
        ids = token_ids()
        expected = method(lambda ids: model(ids).logits).attribute(ids, target=1)
        model.requires_grad_(False)
        with torch.no_grad():
            scores = method(lambda ids: model(ids).logits).attribute(ids, target=1)
            assert not torch.is_grad_enabled()
        torch.testing.assert_close(scores, expected)

    @every_layer_method
    @pytest.mark.parametrize("fails", [False, True])
    def test_hooks_are_removed_also_after_an_error(self, method, fails):
        model = bert()

        def forward(ids):
            logits = model(ids).logits
            return logits.view(-1) if fails else logits

        attribution = method(forward, model.bert.embeddings)
        if fails:
            with pytest.raises(ValueError, match="one row per input"):
                attribution.attribute(token_ids(), target=1)
        else:
            attribution.attribute(token_ids(), target=1)
        for module in model.modules():
            assert not module._forward_hooks
            assert not module._forward_pre_hooks

    @every_method
    def test_inputs_are_left_as_they_were(self, method, forward_embeddings, embeddings):
        before = embeddings.clone()
        method(forward_embeddings).attribute(embeddings, target=1)
        assert torch.equal(embeddings, before)
        assert not embeddings.requires_grad
        assert embeddings.grad is None

    @every_method
    def test_inputs_made_in_inference_mode(
        self, method, forward_embeddings, embeddings
    ):
        with torch.inference_mode():
            given = embeddings.clone()
        attribution = method(forward_embeddings)
        torch.testing.assert_close(
            attribution.attribute(given, target=1),
            attribution.attribute(embeddings, target=1),
        )

    @pytest.mark.parametrize("requires_grad", [False, True])
    @every_method
    def test_models_that_change_embeddings_in_place_change_those_of_no_caller(
        self, method, requires_grad, forward_embeddings, embeddings
    ):
        def in_place(embeddings):
            embeddings += 0.5
            return forward_embeddings(embeddings)

        expected = method(forward_embeddings).attribute(embeddings + 0.5, 0.5, target=1)
        given = embeddings.clone().requires_grad_(requires_grad)
        for entered in (given, given * 1):  # a leaf, and none
            attributions = method(in_place).attribute(entered, 0.0, target=1)
            torch.testing.assert_close(attributions, expected, rtol=1e-4, atol=1e-6)
            assert torch.equal(entered, embeddings)

    @pytest.mark.parametrize("at_layer", [False, True])
    def test_what_is_looked_up_is_changed_in_place_on_a_path(self, at_layer, model):
        ids, words = token_ids(), model.bert.embeddings.word_embeddings

        def forward(ids, in_place):
            found = words(ids)
            embeddings = found.add_(0.5) if in_place else found + 0.5
            return model(inputs_embeds=embeddings).logits

        layered = LayerRelevanceFlow(forward, words)
        flow = layered if at_layer else RelevanceFlow(forward)
        changed, expected = (
            flow.explain(ids, 3, target=1, additional_forward_args=in_place)
            for in_place in (True, False)
        )
        torch.testing.assert_close(changed.scores, expected.scores)

    @every_layer_method
    def test_gradients_of_a_graph_that_is_kept_give_the_same(self, method, model):
        ids, layer = token_ids(), model.bert.embeddings
        attribution = method(lambda ids: model(ids).logits, layer)
        kept = attribution.attribute(ids, 3, 1, grad_kwargs={"create_graph": True})
        assert not kept.requires_grad
        torch.testing.assert_close(kept, attribution.attribute(ids, 3, 1))

    @every_layer_method
    def test_a_copy_takes_another_forward_function(self, method, model, forward):
        ids = token_ids()
        original = method(lambda ids: 1 / 0, model.bert.embeddings)
        duplicate = copy.copy(original)
        duplicate.forward_func = forward
        expected = method(forward, model.bert.embeddings).attribute(ids, target=1)
        assert torch.equal(duplicate.attribute(ids, target=1), expected)

    def test_data_parallels_module_is_taken(self, model):
        class Logits(nn.Module):
            def __init__(self):
                super().__init__()
                self.model = model

            def forward(self, ids):
                return self.model(ids).logits

        ids = token_ids()
        parallel = nn.DataParallel(Logits())
        scores = GeneralizedAttentionFlow(parallel.module).attribute(ids, target=1)
        assert scores.shape == ids.shape

    @every_method
    @pytest.mark.parametrize("kind", ["smoothgrad", "smoothgrad_sq", "vargrad"])
    def test_noise_tunnel(self, method, kind, forward_embeddings, embeddings):
        tunnel = NoiseTunnel(method(forward_embeddings))
        arguments = {"nt_type": kind, "nt_samples": 4, "target": [0, 1, 1]}
        quiet, delta = tunnel.attribute(
            embeddings, stdevs=0.0, return_convergence_delta=True, **arguments
        )
        plain = method(forward_embeddings).attribute(embeddings, target=[0, 1, 1])
        expected = {"smoothgrad": plain, "smoothgrad_sq": plain**2}
        torch.testing.assert_close(
            quiet, expected.get(kind, torch.zeros_like(plain)), atol=1e-8, rtol=1e-4
        )
        assert delta.shape == (12,)
        noisy = tunnel.attribute(embeddings, stdevs=0.1, **arguments)
        assert noisy.shape == embeddings.shape
        assert noisy.isfinite().all()

    @every_method
    def test_sensitivity_max(self, method, forward_embeddings, embeddings):
        sensitivity = sensitivity_max(
            method(forward_embeddings).attribute,
            embeddings,
            target=1,
            n_perturb_samples=2,
        )
        assert sensitivity.shape == (3,)
        assert sensitivity.isfinite().all()

    @every_method
    def test_infidelity(self, method, forward_embeddings, embeddings):
        def perturb(inputs):
            noise = 0.01 * torch.randn_like(inputs)
            return noise, inputs - noise

        error = infidelity(
            forward_embeddings,
            perturb,
            embeddings,
            method(forward_embeddings).attribute(embeddings, target=1),
            target=1,
        )
        assert error.shape == (3,)

    @every_layer_method
    def test_llm_gradient_attribution(self, method, demo):
        model = causal_language_model(len(demo.tokenizer))
        attribution = method(model, model.transformer.wte)
        wrapper = LLMGradientAttribution(attribution, demo.tokenizer)
        assert wrapper.attr_method is not attribution
        skipped = [demo.tokenizer.cls_token_id, demo.tokenizer.sep_token_id]
        prompt = TextTokenInput(
            "a gripping , funny film", demo.tokenizer, skip_tokens=skipped
        )
        result = wrapper.attribute(prompt, target="dull movie")
        assert attribution.forward_func is model
        assert result.token_attr.shape == (2, 5)
        torch.testing.assert_close(result.seq_attr, result.token_attr.sum(0))
        # The second token is predicted from the prompt, as encoded, and the first one.
        encoded = demo.tokenizer("a gripping , funny film").input_ids
        dull, movie = demo.tokenizer.convert_tokens_to_ids(["dull", "movie"])
        ids = torch.tensor([[*encoded, dull]])
        alone = method(
            lambda ids: model(ids).logits[:, -1].log_softmax(-1), model.transformer.wte
        )
        expected = alone.attribute(ids, target=movie).sum(-1)[0, 1:6]
        torch.testing.assert_close(result.token_attr[1], expected, rtol=1e-3, atol=1e-6)


class TestRefusals:
    @every_method
    def test_split_between_embeddings(self, method, model, embeddings):
        def forward(word, position):
            return model(inputs_embeds=word + position).logits

        with pytest.raises(ValueError, match="one score per token position"):
            method(forward).attribute((embeddings, embeddings), target=1)

    @every_layer_method
    def test_split_between_layers(self, method, model, forward):
        parts = model.bert.embeddings
        layers = [parts.word_embeddings, parts.position_embeddings]
        with pytest.raises(ValueError, match=r"2 layers were given.*embeddings module"):
            method(forward, layers).attribute(token_ids(), target=1)

    @pytest.mark.parametrize("method", [*LAYER_METHODS, LayerAttnLRP, LayerSLALOM])
    @pytest.mark.parametrize("layer", [None, "embeddings", []])
    def test_layer_that_is_no_module(self, method, layer, forward):
        with pytest.raises(
            ValueError, match=rf"layer={re.escape(repr(layer))} is no m"
        ):
            method(forward, layer)

    @every_layer_method
    def test_a_layer_that_runs_twice_is_said_to(self, method, model):
        embeddings = model.bert.embeddings

        def forward(ids):
            return model(ids).logits + embeddings(ids[:, :3]).sum((1, 2))[:, None]

        with pytest.raises(
            ValueError, match=r"last of the 2 times that it ran.*2, 3, "
        ):
            method(forward, embeddings).attribute(token_ids(), target=1)

    @every_method
    def test_input_that_is_no_tokens(self, method, model):
        project = torch.randn(5, 4 * 32).double()

        def forward(table):
            return model(inputs_embeds=(table @ project).unflatten(1, (4, 32))).logits

        with pytest.raises(
            ValueError, match=r"shape \(3, 5\).*4 tokens for 3 examples"
        ):
            method(forward).attribute(torch.randn(3, 5).double(), target=1)

    @every_layer_method
    def test_layer_without_tokens(self, method, model, forward):
        with pytest.raises(ValueError, match=r"\(2, 2\).*\(2, 10\).*embeddings module"):
            method(forward, model.classifier).attribute(token_ids(), target=1)

    @every_layer_method
    def test_as_many_examples_as_tokens_are_fine(self, method, model, forward):
        ids = token_ids(6, 6)
        attribution = method(forward, model.bert.embeddings)
        together = attribution.attribute(ids, target=1)
        alone = attribution.attribute(ids[:1], target=1)
        torch.testing.assert_close(together[:1], alone)

    @pytest.mark.parametrize("frozen", [False, True])
    @every_layer_method
    def test_so_are_they_where_torch_would_nest_padded_rows(self, method, frozen):
        model = TorchEncoder().requires_grad_(not frozen)
        ids, padding = token_ids(6, 6), torch.zeros(6, 6, dtype=torch.bool)
        padding[0, 4:] = True
        attribution = method(model, model.encoder.layers[0])
        together = attribution.attribute(ids, 3, 1, padding)
        alone = attribution.attribute(ids[:1], 3, 1, padding[:1])
        torch.testing.assert_close(together[:1], alone)

    @every_layer_method
    def test_layer_that_does_not_run(self, method, forward):
        with pytest.raises(ValueError, match="Linear did not run"):
            method(forward, nn.Linear(2, 2)).attribute(token_ids(), target=1)

    @every_method
    @pytest.mark.parametrize("shape", [(0, 5), (2, 0)])
    def test_empty_input(self, method, forward, shape):
        empty = torch.zeros(shape, dtype=torch.long)
        with pytest.raises(ValueError, match="at least one"):
            method(forward).attribute(empty, target=1)

    @every_method
    def test_captums_own_arguments_are_validated(self, method, forward):
        ids = token_ids()
        for wrong in ({"n_steps": -1}, {"method": "simpson"}):
            with pytest.raises(AssertionError):
                method(forward).attribute(ids, **{"target": 1, **wrong})
        with pytest.raises(ValueError, match="internal_batch_size=0"):
            method(forward).attribute(ids, target=1, internal_batch_size=0)

    def test_pooling_encoder(self):
        model = classifier("Funnel")
        with pytest.raises(UnsupportedAttentionError, match="Funnel"):
            GeneralizedAttentionFlow(lambda ids: model(ids).logits).attribute(
                token_ids(), target=1
            )

    @pytest.mark.parametrize(
        ("method", "options", "message"),
        [
            (GeneralizedAttentionFlow, {"information": "FA"}, "'AF', 'GF', 'AGF'"),
            (GeneralizedAttentionFlow, {"game": "poker"}, "'joint', 'independent'"),
            (GeneralizedAttentionFlow, {"residual": "some"}, "residual='some'"),
            (GeneralizedAttentionFlow, {"solver": "simplex"}, "barrier"),
            (GeneralizedAttentionFlow, {"solver": None}, "solver=None is unknown"),
            (GeneralizedAttentionFlow, {"game": ["joint"]}, "game="),
            (AttentionFlow, {"game": "poker"}, "'joint', 'independent'"),
            (AttentionFlow, {"residual": 2}, "residual=2"),
            (AttentionRollout, {"residual": "free"}, "product of matrices"),
        ],
    )
    def test_unknown_options(self, method, options, message):
        with pytest.raises(ValueError, match=message):
            method(lambda x: x, **options)


def test_all_zero_scores_warn_with_the_reason():
    model = bert()

    def forward(ids):
        logits = model(ids).logits
        return torch.cat([logits[:1], 0 * logits[1:]])

    with pytest.warns(UserWarning, match=r"examples \[1\] are 0.*gradient is 0"):
        scores = GeneralizedAttentionFlow(forward).attribute(token_ids(), target=1)
    assert scores[0].any()
    assert not scores[1].any()


def test_warnings_point_at_the_callers_line():
    model = bert()
    attribution = GeneralizedAttentionFlow(lambda ids: 0 * model(ids).logits)
    for function in (attribution.attribute, attribution.explain):
        with pytest.warns(UserWarning, match="are 0") as caught:
            function(token_ids(), target=1)
        assert caught[0].filename == __file__


def test_delta_of_a_list_of_layers_is_computed_from_it(model, forward):
    ids = token_ids()
    attribution = LayerGeneralizedAttentionFlow(forward, [model.bert.embeddings])
    attributions, delta = attribution.attribute(
        ids, target=1, return_convergence_delta=True
    )
    again = attribution.compute_convergence_delta(attributions, 0, ids, target=1)
    torch.testing.assert_close(again, delta, atol=1e-9, rtol=0)


def test_a_good_result_does_not_warn(forward):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GeneralizedAttentionFlow(forward).attribute(token_ids(), target=1)


class SequenceFirst(nn.Module):
    """A classifier that keeps its tokens in dimension 0, as torch's default has it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embeddings = nn.Embedding(VOCABULARY, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 48, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 3)
        self.double().eval()

    def forward(self, ids: Tensor) -> Tensor:
        return self.of_embeddings(self.embeddings(ids.mT))

    def of_embeddings(self, embedded: Tensor) -> Tensor:
        return self.head(self.encoder(embedded).mean(0))


class TestLayersThatPutTheSequenceFirst:
    """Attributions are in the layer's own (T, B, D), whatever the sizes are."""

    @every_layer_method
    @pytest.mark.parametrize("n_rows", [1, 2, 3, 6])
    def test_scores_are_those_of_the_rows_alone(self, method, n_rows):
        model = classifier("XLNet", dtype=torch.float64)
        layer = model.transformer.word_embedding
        attribution = method(lambda ids: model(ids).logits, layer)
        ids = token_ids(n_rows, 6)
        together = attribution.attribute(ids, 0, target=1)
        assert together.shape == (6, n_rows, 32)
        alone = [attribution.attribute(one[None], 0, target=1) for one in ids]
        torch.testing.assert_close(together, torch.cat(alone, 1))

    @pytest.mark.parametrize("path_steps", [0, 1, 2])
    @pytest.mark.parametrize("n_rows", [1, 2, 3, 6])
    def test_a_path_leads_through_the_layer(self, n_rows, path_steps):
        model, ids = SequenceFirst(), token_ids(n_rows, 6)
        flow = LayerRelevanceFlow(model, model.embeddings, path_steps=path_steps)
        scores = flow.attribute(ids, 0, target=1).sum(-1)
        honest = RelevanceFlow(
            lambda embedded: model.of_embeddings(embedded.transpose(0, 1)),
            path_steps=path_steps,
        )
        embedded, baseline = (model.embeddings(x) for x in (ids, 0 * ids))
        expected = honest.attribute(embedded, baseline, target=1).sum(-1)
        torch.testing.assert_close(scores, expected.mT)

    @pytest.mark.parametrize("n_rows", [1, 2, 3, 6])
    def test_token_ids_are_looked_up_tokens_first(self, n_rows):
        model, ids = SequenceFirst(), token_ids(n_rows, 6)
        layer = LayerRelevanceFlow(model, model.embeddings)
        torch.testing.assert_close(
            RelevanceFlow(model).attribute(ids, 0, target=1),
            layer.attribute(ids, 0, target=1).sum(-1).mT.float(),
        )

    @every_layer_method
    def test_layers_that_leave_no_trace_are_refused_where_sizes_coincide(self, method):
        model = SequenceFirst().requires_grad_(False)

        def forward(ids):
            with torch.no_grad():
                embedded = model.embeddings(ids.mT)
            return model.of_embeddings(embedded.clone().requires_grad_())

        attribution = method(forward, model.embeddings)
        with pytest.raises(ValueError, match="which dimension holds the examples"):
            attribution.attribute(token_ids(6, 6), target=1)


class TestThreads:
    """Threads may share a model: what another one runs is none of a call's business."""

    @pytest.mark.parametrize("method", [*LAYER_METHODS, LayerAttnLRP])
    def test_another_threads_calls_of_the_layer_are_not_seen(self, method, model):
        ids = token_ids()
        expected = method(lambda ids: model(ids).logits, model.bert.embeddings)
        expected = expected.attribute(ids, 0, target=1)

        def forward(ids):
            """Another thread runs the model in the middle of this pass."""
            with ThreadPoolExecutor(1) as other:
                other.submit(model, token_ids(2, 10).flip(0)).result()
            return model(ids).logits

        attribution = method(forward, model.bert.embeddings)
        torch.testing.assert_close(attribution.attribute(ids, 0, target=1), expected)
