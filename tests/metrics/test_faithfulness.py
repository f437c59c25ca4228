from __future__ import annotations

import inspect
from functools import cache

import pytest
import torch
from captum.attr import LayerIntegratedGradients
from models import bert, encoder_decoder
from reference import faithfulness as reference

from captum_attnflow import metrics

PAD, CLS, SEP, MASK = 0, 1, 2, 3
TEXTS = [
    ([11, 12, 13, 14, 15], [0.5, 0.1, -0.3, 0.9, 0.2]),  # no ties
    ([21, 22, 23, 24, 25, 26], [0.5, 0.5, 0.1, 0.5, 0.1, 0.0]),  # two groups of ties
    ([31], [0.7]),  # a single token
    ([41, 42, 43, 44], [0.0, 0.0, 0.0, 0.0]),  # nothing is decided
    ([51, 52, 51], [-1.0, -2.0, -1.0]),
    ([], []),  # special tokens only
]
TARGETS = [1, 0, 1, 0, 1, 0]
FUNCTIONS = {
    "aopc": metrics.aopc,
    "log_odds": metrics.log_odds,
    "comprehensiveness": metrics.comprehensiveness,
    "sufficiency": metrics.sufficiency,
    "deletion": metrics.deletion_curve,
    "insertion": metrics.insertion_curve,
}


@pytest.fixture(scope="module")
def model():
    model = bert()
    model.resize_token_embeddings(60)
    return model.double()


@pytest.fixture(scope="module")
def batch():
    """Padded ids, scores and masks, special tokens with the highest scores of all."""
    width = 2 + max(len(ids) for ids, _ in TEXTS)
    ids = torch.full((len(TEXTS), width), PAD)
    scores = torch.full((len(TEXTS), width), 5.0)
    for row, (text, text_scores) in enumerate(TEXTS):
        ids[row, : len(text) + 2] = torch.tensor([CLS, *text, SEP])
        scores[row, 1 : len(text) + 1] = torch.tensor(text_scores)
    return {
        "inputs": ids,
        "attributions": scores,
        "keep": (ids == CLS) | (ids == SEP),
        "padding": ids == PAD,
    }


@pytest.fixture(scope="module")
def forward(model):
    return lambda ids, mask: model(ids, attention_mask=mask).logits


@pytest.fixture(scope="module")
def arguments(batch, forward):
    return {
        **batch,
        "forward_func": forward,
        "baselines": MASK,
        "target": TARGETS,
        "additional_forward_args": (~batch["padding"]).long(),
    }


def expected(model, metric, removal, levels):
    """The replica runs each text alone, without padding or mask."""
    curves = []
    for (text, scores), target in zip(TEXTS, TARGETS, strict=True):

        @cache
        def probability(ids, target=target):
            with torch.no_grad():
                return model(torch.tensor([ids])).logits.softmax(-1)[0, target].item()

        ids = [CLS, *text, SEP]
        keep = [token in (CLS, SEP) for token in ids]
        replacement = MASK if removal == "replace" else None
        curves.append(
            reference.curve(
                metric, probability, ids, [9, *scores, 9], keep, replacement, levels
            )
        )
    return curves


def usual_levels(function):
    return inspect.signature(function).parameters["fractions"].default


@pytest.mark.parametrize("internal_batch_size", [1, 16])
@pytest.mark.parametrize("removal", ["replace", "delete"])
@pytest.mark.parametrize("metric", FUNCTIONS)
def test_metrics_equal_their_definitions(
    model, arguments, metric, removal, internal_batch_size
):
    function = FUNCTIONS[metric]
    given = function(
        **arguments, removal=removal, internal_batch_size=internal_batch_size
    )
    curves = expected(model, metric, removal, usual_levels(function))
    wanted = curves if given.dim() == 2 else [reference.mean(c) for c in curves]
    torch.testing.assert_close(
        given, torch.tensor(wanted, dtype=torch.float64), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("removal", ["replace", "delete"])
@pytest.mark.parametrize("name", ["deletion", "insertion"])
def test_areas_are_trapezoids_under_the_curves(model, arguments, name, removal):
    levels = [0, 0.2, 0.5, 1]
    curves = expected(model, name, removal, levels)
    function = getattr(metrics, f"{name}_area")
    given = function(**arguments, fractions=levels, removal=removal)
    wanted = [reference.area(curve, levels) for curve in curves]
    torch.testing.assert_close(given, torch.tensor(wanted, dtype=torch.float64))


@pytest.mark.parametrize("removal", ["replace", "delete"])
def test_all_metrics_at_once_equal_the_single_ones(arguments, removal):
    together = metrics.faithfulness(**arguments, removal=removal)
    assert list(together) == list(metrics.METRICS)
    for name, values in together.items():
        alone = getattr(metrics, name)(**arguments, removal=removal)
        torch.testing.assert_close(values, alone, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("removal", ["replace", "delete"])
def test_values_do_not_depend_on_batch_company(arguments, removal):
    together = metrics.aopc(**arguments, removal=removal)
    rows = ("inputs", "attributions", "keep", "padding", "additional_forward_args")
    for row in range(len(TEXTS)):
        alone = {name: arguments[name][row : row + 1] for name in rows}
        alone["target"] = TARGETS[row]
        value = metrics.aopc(**{**arguments, **alone}, removal=removal)
        torch.testing.assert_close(value, together[row : row + 1], rtol=1e-9, atol=0)


class TestAdditiveModel:
    """A model whose probability is a sum over tokens, so that truth is known."""

    WEIGHTS = torch.tensor([0.20, 0.15, 0.12, 0.10, 0.08, 0.07, 0.06, 0.05, 0.04, 0.03])
    IDS = torch.tensor([[3, 1, 4, 10, 5, 9, 2, 6, 8, 7]])

    @classmethod
    def forward(cls, ids):
        weights = torch.cat([torch.zeros(1), cls.WEIGHTS])  # id 0 says nothing
        probability = 0.05 + weights[ids].sum(1)
        return torch.stack([1 - probability, probability], 1)

    @property
    def oracle(self):
        return self.WEIGHTS[self.IDS - 1]

    @property
    def setting(self):
        return {"target": 1, "output": "probabilities"}

    @pytest.mark.parametrize("removal", ["replace", "delete"])
    def test_aopc_of_the_oracle_is_the_analytic_value(self, removal):
        value = metrics.aopc(
            self.forward, self.IDS, self.oracle, 0, removal=removal, **self.setting
        )
        # The first token is gone at all five levels, the fifth at the last one only.
        analytic = (5 * 0.20 + 4 * 0.15 + 3 * 0.12 + 2 * 0.10 + 1 * 0.08) / 5
        assert value.item() == pytest.approx(analytic, abs=1e-6)

    def test_all_zero_scores_are_the_random_attribution(self):
        zeros = torch.zeros(1, 10)
        value = metrics.aopc(
            self.forward, self.IDS, zeros, 0, n_tie_samples=252, **self.setting
        )
        # A random set of k of 10 tokens holds k/10 of the weight, in expectation.
        assert value.item() == pytest.approx(0.9 * 0.3, abs=1e-6)

    def test_draws_among_ties_approach_the_expectation(self):
        zeros = torch.zeros(1, 10)
        errors = [
            metrics.aopc(
                self.forward,
                self.IDS,
                zeros,
                0,
                n_tie_samples=200,
                seed=s,
                **self.setting,
            ).item()
            - 0.27
            for s in range(4)
        ]
        # Five levels of 200 draws, each of a standard deviation below 0.09.
        assert max(map(abs, errors)) < 4 * 0.09 / 200**0.5
        assert len(set(errors)) == 4

    def test_no_order_beats_the_oracle(self):
        best = metrics.aopc(self.forward, self.IDS, self.oracle, 0, **self.setting)
        for _ in range(20):
            scores = torch.rand(1, 10)
            value = metrics.aopc(self.forward, self.IDS, scores, 0, **self.setting)
            assert value <= best + 1e-6


def test_draws_depend_on_the_seed_alone(arguments):
    many_ties = {**arguments, "attributions": torch.zeros(6, 8), "n_tie_samples": 2}
    first = metrics.aopc(**many_ties)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert torch.equal(metrics.aopc(**many_ties), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(metrics.aopc(**many_ties, seed=1), first)


def test_each_set_of_tokens_is_evaluated_once(arguments, forward):
    seen = []

    def counting(ids, mask):
        seen.extend(map(tuple, ids.tolist()))
        return forward(ids, mask)

    metrics.faithfulness(**{**arguments, "forward_func": counting}, removal="replace")
    # Different sets of the text with two equal tokens can look alike.
    distinct = [row for row in seen if 51 not in row and 52 not in row]
    assert sorted(set(distinct)) == sorted(distinct)
    n_rows = len(seen)
    seen.clear()
    for name in metrics.METRICS:
        function = getattr(metrics, name)
        function(**{**arguments, "forward_func": counting}, removal="replace")
    assert len(seen) > 2 * n_rows


def test_forward_passes_hold_one_length_and_at_most_the_batch_size(arguments, forward):
    shapes = []

    def watching(ids, mask):
        shapes.append(tuple(ids.shape))
        assert mask.all()  # no padding is left
        return forward(ids, mask)

    metrics.aopc(
        **{**arguments, "forward_func": watching},
        removal="delete",
        internal_batch_size=3,
    )
    assert max(rows for rows, _ in shapes) == 3
    assert {length for _, length in shapes} == {2, 3, 4, 5, 6, 7, 8}


def test_embeddings_and_feature_attributions_give_the_value_of_ids(model, arguments):
    embedding = model.get_input_embeddings()
    ids = arguments["inputs"]
    spread = arguments["attributions"][..., None] * torch.tensor([0.25, 0.5, 0.25])
    given = metrics.aopc(
        lambda vectors, mask: model(inputs_embeds=vectors, attention_mask=mask).logits,
        embedding(ids),
        spread,
        embedding.weight[MASK].detach(),
        TARGETS,
        arguments["additional_forward_args"],
        keep=arguments["keep"],
        padding=arguments["padding"],
    )
    torch.testing.assert_close(given, metrics.aopc(**arguments))


def test_attributions_of_captum_are_taken_as_they_come(model, arguments, forward):
    data = {name: arguments[name] for name in ("target", "additional_forward_args")}
    layer = LayerIntegratedGradients(forward, model.bert.embeddings)
    attributions = layer.attribute(arguments["inputs"], MASK, n_steps=5, **data)
    value = metrics.aopc(**{**arguments, "attributions": attributions})
    assert value.shape == (6,)
    summed = {**arguments, "attributions": attributions.detach().double().sum(-1)}
    assert torch.equal(value, metrics.aopc(**summed))


def has_rows(argument, ids):
    is_tensor = isinstance(argument, torch.Tensor)
    return is_tensor and argument.dim() > 0 and len(argument) == len(ids)


def refuse_another_length(ids, arguments):
    """Fail as a model does where an argument of five tokens meets a shorter text."""
    for argument in arguments:
        if isinstance(argument, torch.Tensor) and 5 in argument.shape[1:]:
            assert ids.shape[1] == 5


class TestAdditionalArguments:
    ids = torch.tensor([[CLS, 11, 12, 13, SEP], [CLS, 21, 22, SEP, PAD]])
    scores = torch.tensor([[0.0, 3, 2, 1, 0], [0.0, 1, 2, 0, 0]])

    def seen(self, *additional, removal="delete"):
        """What a forward function gets with the highest token removed."""
        calls = []

        def forward(ids, *arguments):
            refuse_another_length(ids, arguments)
            for i, row in enumerate(ids.tolist()):
                calls.append(
                    (row, [a[i] if has_rows(a, ids) else a for a in arguments])
                )
            return torch.zeros(len(ids), 2)

        metrics.deletion_curve(
            forward,
            self.ids,
            self.scores,
            MASK,
            0,
            additional,
            fractions=[0.1],
            removal=removal,
            keep=(self.ids == CLS) | (self.ids == SEP),
            padding=self.ids == PAD,
        )
        return {tuple(ids): arguments for ids, arguments in calls}

    def test_columns_follow_their_tokens(self):
        colours = torch.tensor([[1.5, 2, 3, 4, 5], [6, 7, 8, 9, 10]])
        seen = self.seen(colours)
        assert seen[(CLS, 12, 13, SEP)][0].tolist() == [1.5, 3, 4, 5]
        assert seen[(CLS, 21, SEP)][0].tolist() == [6, 7, 9]
        assert seen[(CLS, 21, 22, SEP)][0].tolist() == [6, 7, 8, 9]

    @pytest.mark.parametrize("shape", [(2, 5), (1, 5)])
    def test_positions_are_counted_anew(self, shape):
        seen = self.seen(torch.arange(2, 7).expand(shape))
        assert seen[(CLS, 12, 13, SEP)][0].tolist() == [2, 3, 4, 5]
        assert seen[(CLS, 21, SEP)][0].tolist() == [2, 3, 4]

    def test_positions_start_where_they_did_when_the_first_token_goes(self):
        seen = []

        def forward(ids, at):
            assert ids.shape == at.shape
            seen.append(at.tolist())
            return torch.zeros(len(ids), 2)

        metrics.deletion_curve(
            forward,
            torch.tensor([[0, 5, 6, 7]]),  # padded on the left
            torch.tensor([[9.0, 3, 2, 1]]),
            target=0,
            additional_forward_args=torch.tensor([[1, 1, 2, 3]]),
            fractions=[0.3],
            removal="delete",
            padding=torch.tensor([[True, False, False, False]]),
        )
        assert seen == [[[1, 2]], [[1, 2, 3]]]

    def test_two_tokens_are_not_taken_for_positions(self):
        types = torch.tensor([[0, 1, 9], [0, 1, 9]])
        seen = []
        metrics.deletion_curve(
            lambda ids, types: seen.append(types.tolist()) or torch.zeros(len(ids), 2),
            torch.tensor([[5, 6, 0], [7, 8, 0]]),
            torch.tensor([[2.0, 1, 0], [2, 1, 0]]),
            target=0,
            additional_forward_args=types,
            fractions=[0.5],
            removal="delete",
            padding=types == 9,
        )
        assert seen == [[[1], [1]], [[0, 1], [0, 1]]]

    @pytest.mark.parametrize("n_heads", [None, 1, 3])
    def test_pairwise_masks_lose_rows_and_columns(self, n_heads):
        pairs = torch.arange(50).reshape(2, 5, 5)
        pairs = pairs if n_heads is None else pairs[:, None].repeat(1, n_heads, 1, 1)
        kept = self.seen(pairs)[(CLS, 12, 13, SEP)][0]
        wanted = pairs[0][..., [0, 2, 3, 4], :][..., [0, 2, 3, 4]]
        assert torch.equal(kept, wanted)

    def test_others_pass_as_they_are(self):
        per_example = torch.tensor([[7.0, 8, 9], [1, 2, 3]])
        seen = self.seen(per_example, "word", torch.tensor(2.5), torch.arange(9))
        vector, word, number, table = seen[(CLS, 21, SEP)]
        assert vector.tolist() == [1, 2, 3]
        assert word == "word"
        assert number == 2.5
        assert table.tolist() == list(range(9))

    def test_replacement_keeps_the_length(self):
        colours = torch.tensor([[1.5, 2, 3, 4, 5], [6, 7, 8, 9, 10]])
        seen = self.seen(colours, removal="replace")
        assert seen[(CLS, MASK, 12, 13, SEP)][0].tolist() == [1.5, 2, 3, 4, 5]
        assert seen[(CLS, 21, MASK, SEP)][0].tolist() == [6, 7, 8, 9]


WAYS_TO_NAME = {
    "decoder": lambda f: (
        lambda ids, mask, decoder_input_ids: f(ids, mask, decoder_input_ids)
    ),
    "another name": lambda f: lambda ids, mask, answer: f(ids, mask, answer),
    "no name": lambda f: lambda *given: f(*given),
}


class TestDecoders:
    """Tokens of an encoder go; as many tokens of its decoder stay as they are."""

    ids = torch.tensor([[5, 9, 30, 11], [8, 7, 6, 0]])
    answers = torch.tensor([[2, 4, 20, 30], [2, 30, 9, 1]])
    scores = torch.tensor([[0.3, 0.9, 0.1, 0.5], [0.2, 0.7, 0.4, 0.0]])

    @pytest.fixture(params=["T5", "Bart"])
    def forward(self, request):
        model = encoder_decoder(request.param)

        def forward(ids, mask, answer):
            return model(
                input_ids=ids, attention_mask=mask, decoder_input_ids=answer
            ).logits[:, -1]

        return forward

    @pytest.mark.parametrize("removal", ["replace", "delete"])
    @pytest.mark.parametrize("name", WAYS_TO_NAME)
    def test_an_answer_as_long_as_the_text_stays_whole(self, forward, name, removal):
        padding = self.ids == 0
        options = {"baselines": 3, "target": 6, "removal": removal}
        fractions = [0.2, 0.5]
        together = metrics.aopc(
            WAYS_TO_NAME[name](forward),
            self.ids,
            self.scores,
            additional_forward_args=((~padding).long(), self.answers),
            padding=padding,
            fractions=fractions,
            **options,
        )
        for row, n_tokens in enumerate((4, 3)):

            def alone(ids, row=row):
                answer = self.answers[row].expand(len(ids), -1)
                return forward(ids, torch.ones_like(ids), answer)

            value = metrics.aopc(
                alone,
                self.ids[row : row + 1, :n_tokens],
                self.scores[row : row + 1, :n_tokens],
                fractions=fractions,
                **options,
            )
            torch.testing.assert_close(together[row], value[0])

    def test_a_decoders_mask_stays_with_its_tokens(self):
        lengths = []

        def forward(ids, mask, decoder_input_ids, decoder_attention_mask):
            assert mask.shape == ids.shape
            assert decoder_attention_mask.shape == decoder_input_ids.shape
            lengths.append((ids.shape[1], decoder_input_ids.shape[1]))
            return torch.zeros(len(ids), 2)

        ones = torch.ones_like(self.ids)
        metrics.aopc_bounds(
            forward,
            self.ids,
            target=0,
            additional_forward_args=(ones, self.answers, ones),
            removal="delete",
        )
        assert {length for length, _ in lengths} == {1, 2, 3, 4}
        assert {length for _, length in lengths} == {4}


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_single_output_is_read_through_the_logistic_function(shape):
    ids = torch.tensor([[1, 2], [3, 4], [5, 6]])

    def forward(ids):
        return ids.sum(1).double().div(10).reshape(-1, *shape[1:])

    curve = metrics.deletion_curve(
        forward, ids, torch.tensor([[2.0, 1]] * 3), 0, fractions=[0, 0.5, 1]
    )
    wanted = torch.tensor([[0.3, 0.2, 0], [0.7, 0.4, 0], [1.1, 0.6, 0]]).sigmoid()
    torch.testing.assert_close(curve, wanted.double())


def test_probabilities_are_taken_as_they_are(arguments, forward):
    def probabilities(ids, mask):
        return forward(ids, mask).softmax(-1)

    given = {**arguments, "forward_func": probabilities}
    torch.testing.assert_close(
        metrics.log_odds(**given, output="probabilities"), metrics.log_odds(**arguments)
    )


def test_log_odds_stay_finite_where_the_probability_vanishes():
    value = metrics.log_odds(
        lambda ids: (ids != 0).double(),
        torch.ones(1, 1),
        torch.ones(1, 1),
        0,
        target=0,
        output="probabilities",
    )
    assert -90 < value.item() < -80


def test_progress_is_shown_on_request(arguments, capsys):
    metrics.aopc(**arguments)
    assert capsys.readouterr().err == ""
    metrics.aopc(**arguments, show_progress=True)
    assert "token removals: 100%" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attributions": torch.zeros(6, 7)}, "one score"),
        ({"attributions": torch.full((6, 8), torch.nan)}, "example 0 hold NaN"),
        ({"inputs": (torch.zeros(6, 8), torch.zeros(6, 8))}, "one tensor of tokens"),
        ({"baselines": None}, "tokenizer.mask_token_id"),
        ({"baselines": 0.5}, "cannot replace token ids"),
        ({"baselines": torch.ones(5, dtype=torch.long)}, "do not fit inputs"),
        ({"fractions": []}, "at least one share"),
        ({"fractions": [10, 50]}, "each from 0 to 1"),
        ({"keep": torch.ones(6, 8)}, "give bool"),
        ({"padding": torch.ones(6, 7, dtype=torch.bool)}, "of shape"),
        ({"removal": "mask"}, "'replace', 'delete'"),
        ({"output": "odds"}, "'logits', 'probabilities'"),
        ({"output": "probabilities"}, "no probabilities"),
        ({"internal_batch_size": 0}, "positive integer"),
        ({"n_tie_samples": 0}, "at least 1"),
        ({"target": None}, "Pass target"),
        ({"keep": None, "fractions": [1], "removal": "delete"}, "all of its tokens"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(arguments, change, message):
    with pytest.raises(ValueError, match=message):
        metrics.aopc(**{**arguments, **change})


def test_unknown_metrics_and_flat_areas_are_refused(arguments):
    with pytest.raises(ValueError, match="'aopc', 'log_odds'"):
        metrics.faithfulness(**arguments, metrics=["auc"])
    with pytest.raises(ValueError, match="two levels that increase"):
        metrics.deletion_area(**arguments, fractions=[0.5, 0.1])
