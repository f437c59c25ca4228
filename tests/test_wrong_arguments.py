"""Every public callable, every argument, everything wrong: an error in words, or none.

An error has to be a ValueError that says what was given and what to do; Captum's own
assertions are as its users know them. Nothing else may come out: no AttributeError of
an object that was no tensor, no RuntimeError of a kernel.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import captum_attnflow
from captum_attnflow import LayeredNetwork, metrics
from captum_attnflow.capture import capture_attention
from captum_attnflow.demo import load_demo_model
from captum_attnflow.flow import solvers
from captum_attnflow.flow.scores import conserve, read_out_relevance

WRONG: dict[str, Any] = {
    "None": None,
    "int": 3,
    "negative": -1,
    "large": 10**6,
    "float": 1.5,
    "NaN": float("nan"),
    "str": "text",
    "bool": True,
    "object": object(),
    "list": [1, "two"],
    "empty list": [],
    "empty tuple": (),
    "dict": {"a": 1},
    "class": int,
    "callable": lambda *args: None,
    "scalar tensor": torch.tensor(1),
    "one dimension": torch.tensor([1, 2, 3]),
    "empty batch": torch.zeros(0, 4, dtype=torch.long),
    "other rows": torch.ones(7, 4, dtype=torch.long),
    "sparse": torch.eye(4).to_sparse(),
    "meta": torch.ones(2, 4, device="meta"),
    "complex": torch.ones(2, 4, dtype=torch.complex64),
    "tuple of wrong": (torch.ones(2, 4), "text"),
}
WORDS = ("give", "pass", "must", "use ", "take", "accepted", "is unknown", "needs")

MODEL, TOKENIZER = load_demo_model()
IDS = TOKENIZER(["a funny film", "a dull plot"], return_tensors="pt").input_ids
LAYER = MODEL.bert.embeddings


class ModelError(Exception):
    """What the user's own function raises, which passes on as it is."""


def forward(*args: Any) -> torch.Tensor:
    if len(args) != 1:
        raise ModelError(f"{len(args)} arguments")
    try:
        return MODEL(*args).logits
    except IndexError as error:  # such as ids beyond the vocabulary
        raise ModelError from error


def _attributions() -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """Constructors, attribute() and explain() of every class."""
    calls: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {}
    for name in sorted(captum_attnflow.__all__):
        method = getattr(captum_attnflow, name)
        if not (inspect.isclass(method) and hasattr(method, "attribute")):
            continue
        if name == "GenerationAttribution":
            continue  # of a language model; see tests/attr/test_generation.py
        made = {"forward_func": forward}
        if "layer" in inspect.signature(method).parameters:
            made["layer"] = LAYER
        quick = {"n_samples": 20} if "SLALOM" in name else {}
        calls[name] = (method, made | quick)
        given = {"inputs": IDS, "baselines": 103, "target": 1}
        for call in ("attribute", "explain"):
            if hasattr(method, call):
                calls[f"{name}.{call}"] = (
                    getattr(method(**made, **quick), call),
                    given,
                )
    return calls


def _functions() -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    ends = torch.ones(2, 4, dtype=torch.bool)
    capacity = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    network = LayeredNetwork(capacity, ends, ends)
    scores = torch.rand(IDS.shape, generator=torch.Generator().manual_seed(0))
    evaluated = {
        "forward_func": forward,
        "inputs": IDS,
        "attributions": scores,
        "baselines": 103,
        "target": 1,
    }
    calls: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
        "LayeredNetwork": (
            LayeredNetwork,
            {"capacity": capacity, "source": ends, "sink": ends},
        ),
        "solve_flow": (captum_attnflow.solve_flow, {"network": network}),
        "solve_sources": (solvers.solve_sources, {"network": network}),
        "BarrierSolver": (captum_attnflow.BarrierSolver, {}),
        "conserve": (
            conserve,
            {"messages": capacity.double(), "read_out": ends.double()},
        ),
        "read_out_relevance": (
            read_out_relevance,
            {"output": torch.ones(2), "read_out": ends, "streams": None},
        ),
        "capture_attention": (
            capture_attention,
            {"forward_func": forward, "inputs": (IDS,), "target": 1},
        ),
    }
    for name in ("aopc", "comprehensiveness", "sufficiency", "log_odds"):
        calls[f"metrics.{name}"] = (getattr(metrics, name), evaluated)
    for name in ("evidence_hit", "evidence_rank", "evidence_average_precision"):
        if hasattr(metrics, name):
            evidence = torch.zeros(IDS.shape, dtype=torch.bool)
            evidence[:, 1] = True
            calls[f"metrics.{name}"] = (
                getattr(metrics, name),
                {"attributions": scores, "evidence": evidence},
            )
    return calls


CALLS = {**_attributions(), **_functions()}


def unclear(call: Callable[..., Any], arguments: dict[str, Any]) -> str | None:
    """Return what is unclear about the error of a call, if there is one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call(**arguments)
    except ModelError:
        return None
    except AssertionError as error:  # Captum's own
        return None if str(error) else "AssertionError without a word"
    except ValueError as error:
        message = str(error)
        if any(word in message.lower() for word in WORDS):
            return None
        return f"{type(error).__name__}: {message}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


@pytest.mark.parametrize("name", sorted(CALLS))
def test_wrong_arguments_get_an_error_in_words(name):
    call, arguments = CALLS[name]
    parameters = inspect.signature(call).parameters.values()
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    found = []
    for parameter in parameters:
        if parameter.kind in kinds:
            continue
        for kind, wrong in WRONG.items():
            reason = unclear(call, {**arguments, parameter.name: wrong})
            if reason is not None:
                found.append(f"{parameter.name}={kind}: {reason[:160]}")
    assert not found, f"{len(found)} unclear\n" + "\n".join(found)


def test_the_calls_work_as_they_are():
    for name, (call, arguments) in CALLS.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert call(**arguments) is not None, name


def test_a_module_that_is_no_layer_of_the_model_is_refused():
    with pytest.raises(ValueError, match="did not run"):
        captum_attnflow.LayerAttentionRollout(forward, nn.Linear(2, 2)).attribute(
            IDS, target=1
        )


@pytest.mark.parametrize("name", ["RelevanceFlow", "SLALOM", "LayerAttnLRP"])
def test_a_pipeline_is_no_forward_function(name):
    pipeline = transformers.pipeline(
        "text-classification", model=MODEL, tokenizer=TOKENIZER
    )
    others = (LAYER,) if name.startswith("Layer") else ()
    with pytest.raises(ValueError, match=r"a transformers pipeline.*\.model\(ids\)"):
        getattr(captum_attnflow, name)(pipeline, *others)
