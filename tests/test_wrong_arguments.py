"""Every public callable, every argument, every wrong value: an error in words, or none.

An error has to be a ValueError that says what was given and what to do; Captum's own
assertions are as its users know them. Nothing else may come out: no AttributeError of
an object that was no tensor, no RuntimeError of a kernel.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import tempfile
import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import transformers
from captum.attr import TextTokenInput
from models import causal_language_model
from networks import everywhere
from PIL import Image
from score_folders import explained, write_folder
from torch import nn
from vision_language import vision_language_model

import captum_attnflow
from captum_attnflow import (
    SLALOM,
    BarrierSolver,
    DinicSolver,
    ImageTextGenerator,
    LayeredNetwork,
    NetworkXSolver,
    QuestionAnswerer,
    SciPySolver,
    SentenceSimilarity,
    TextClassifier,
    TextGenerator,
    TokenClassifier,
    flow,
    metrics,
    show,
    slalom,
    solve_flow,
    tables,
    texts,
)
from captum_attnflow.capture import capture_attention
from captum_attnflow.demo import DEMO_MODEL_PATH, load_demo_model
from captum_attnflow.flow import scores, solvers
from captum_attnflow.long_form import to_arrow, to_pandas
from captum_attnflow.pipelines.text_classification import TextAttribution
from captum_attnflow.slalom import QueryData, fit_slalom
from captum_attnflow.storage import load_results, save_results
from captum_attnflow.summary import summarize

MODEL, TOKENIZER = load_demo_model()
TEXTS = TOKENIZER(["a funny film", "a dull plot"], return_tensors="pt").input_ids
LAYER = MODEL.bert.embeddings
IDS = torch.tensor([[5, 9, 30, 11], [8, 7, 6, 31]])
CAPACITY = torch.rand(1, 2, 3, 3, generator=torch.Generator().manual_seed(0)) + 0.1


def quiet(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call(*args, **kwargs)


ANYWHERE: dict[str, Any] = {
    "nothing": None,
    "an integer": 3,
    "a negative integer": -1,
    "a large integer": 10**5,
    "a number": 1.5,
    "a fraction": 0.5,
    "NaN": float("nan"),
    "infinity": float("inf"),
    "a bool": True,
    "a name": "max",
    "a text": "text",
    "a list": [1.0],
    "a list of integers": [1, 2],
    "a mixed list": [1, "two"],
    "an empty list": [],
    "an empty tuple": (),
    "a tuple of a tensor and a text": (torch.ones(2, 4), "text"),
    "an array": np.ones((2, 4)),
    "names in an array": np.array(["text", "max"]),
    "a list of lists": [[1], [0]],
    "a tuple of tuples": ((1,), (0,)),
    "a nested list of a tensor": [[torch.ones(2, 4)]],
    "a dict of a tensor": {"a": torch.ones(2, 4)},
    "floats for ids": torch.ones(2, 4),
    "embeddings": torch.ones(2, 4, 3),
    "four dimensions": torch.ones(2, 4, 1, 3),
    "nested rows": quiet(torch.nested.nested_tensor, [torch.ones(3), torch.ones(2)]),
    "an empty dict": {},
    "a dict": {"a": 1},
    "a type": int,
    "a type of solver": BarrierSolver,
    "a function": lambda *args: None,
    "an object": object(),
    "a sparse square": torch.eye(4).to_sparse(),
    "a meta matrix": torch.ones(2, 4, device="meta"),
    "a complex matrix": torch.ones(2, 4, dtype=torch.complex64),
    "no dimension": torch.tensor(1.0),
    "one dimension": torch.ones(3),
    "an integer without dimension": torch.tensor(3),
    "one dimension of integers": torch.tensor([1, 2, 3]),
    "other rows": torch.ones(7, 4, dtype=torch.long),
    "no rows": IDS[:0],
    "a path": Path("nowhere/texts.csv"),
    "an empty text": "",
    "a set": {1, 2},
    "a huge integer": 10**30,
    "an integer of NumPy": np.int64(3),
    "a bool of NumPy": np.True_,
    "half precision": torch.ones(2, 4, dtype=torch.float16),
    "a matrix of bools": torch.ones(2, 4, dtype=torch.bool),
    "meta ids": IDS.to("meta"),
}
IN_TEXTS: dict[str, Any] = {
    "a sparse matrix": IDS.double().to_sparse(),
    "nested vectors": quiet(torch.nested.nested_tensor, [torch.ones(3), torch.ones(2)]),
    "a matrix of NaN": torch.full((2, 4), torch.nan),
    "ids of one text": IDS[0],
    "a column": torch.tensor([[1], [0]]),
    "generated ids": torch.tensor([[1, 0, 2, 3, 4]]),
    "no columns": IDS[:, :0],
}
IN_NETWORKS: dict[str, Any] = {
    "an array": CAPACITY.numpy(),
    "a sparse tensor": CAPACITY.to_sparse(),
    "a sparse row tensor": quiet(CAPACITY[0, 0].to_sparse_csr),
    "a tensor without values": CAPACITY.to("meta"),
    "a nested tensor": quiet(torch.nested.nested_tensor, [torch.rand(2, 3, 3)]),
    "integers": torch.ones(1, 2, 3, 3, dtype=torch.int64),
    "bools": torch.ones(1, 2, 3, 3, dtype=torch.bool),
    "complex numbers": CAPACITY.to(torch.complex64),
    "negative numbers": -CAPACITY,
    "infinite numbers": CAPACITY / 0,
    "numbers that are none": CAPACITY * torch.nan,
    "three dimensions": CAPACITY[0],
    "five dimensions": CAPACITY[None],
    "other queries than keys": torch.rand(1, 2, 3, 4),
    "an empty batch": CAPACITY[:0],
    "no token": CAPACITY[..., :0, :0],
}
WRONG = ANYWHERE | IN_TEXTS | IN_NETWORKS
WORDS = re.compile(r"\b(give|pass|take|attribute to|must|needs?|leave|lies?|remove)\b")
WRONG_ARTICLE = re.compile(r"\ba (nd|(?!one|uint|uni|use)[aeiou])", re.IGNORECASE)


class Call(NamedTuple):
    """A callable with the arguments that go with the wrong one.

    Attributes:
        function (Callable): The callable.
        good (dict): Arguments that it takes.
        allowed (dict, optional): By argument that is given wrongly, the kinds of values
            that it takes nevertheless; every other has to be refused by the argument's
            name. By default any value may be taken.
        wrong (tuple of str, optional): Arguments that are given wrongly; by default
            those in ``allowed``, or every parameter.
        kinds (sequence of str): The kinds of wrong values.
    """

    function: Callable[..., Any]
    good: dict[str, Any]
    allowed: dict[str, set[str]] | None = None
    wrong: tuple[str, ...] | None = None
    kinds: Collection[str] = tuple(ANYWHERE)


class ModelError(Exception):
    """What the user's own function raises, which passes on as it is."""


def forward(*args: Any) -> torch.Tensor:
    if len(args) != 1:
        raise ModelError(f"{len(args)} arguments")
    (ids,) = args
    # A model refuses ordinary tensors that are no ids; others are not to reach it.
    ordinary = not ids.is_meta and ids.layout == torch.strided and not ids.is_complex()
    if ordinary and (ids.dim() != 2 or ids.dtype != torch.int64):
        raise ModelError(f"{ids.dtype} of {ids.dim()} dimensions")
    try:
        return MODEL(*args).logits
    except IndexError as error:  # such as ids beyond the vocabulary
        raise ModelError from error


def attributions() -> dict[str, Call]:
    """Constructors, attribute() and explain() of every class."""
    calls: dict[str, Call] = {}
    for name in sorted(captum_attnflow.__all__):
        method = getattr(captum_attnflow, name)
        if not (inspect.isclass(method) and hasattr(method, "attribute")):
            continue
        if name == "GenerationAttribution":
            continue  # of a language model: generation_calls()
        made = {"forward_func": forward}
        if "layer" in inspect.signature(method).parameters:
            made["layer"] = LAYER
        quick = {"n_samples": 20} if "SLALOM" in name else {}
        calls[name] = Call(method, made | quick)
        given = {"inputs": TEXTS, "baselines": 103, "target": 1}
        for call in ("attribute", "explain"):
            if hasattr(method, call):
                function = getattr(method(**made, **quick), call)
                calls[f"{name}.{call}"] = Call(function, given)
    return calls


def generation_calls() -> dict[str, Call]:
    """Attribution of generated text."""
    model = causal_language_model(len(TOKENIZER))
    made = {
        "attr_method": captum_attnflow.RelevanceFlow(model),
        "tokenizer": TOKENIZER,
        "output": "logit",
    }
    generation = captum_attnflow.GenerationAttribution(**made)
    given = {
        "inp": TextTokenInput("a funny film", TOKENIZER),
        "target": "so dull",
        "gen_args": None,
        "against": None,
    }
    calls = {
        "GenerationAttribution": Call(
            captum_attnflow.GenerationAttribution,
            made,
            {"attr_method": set(), "tokenizer": set(), "output": set()},
        )
    }
    ids = {"one dimension of integers", "a list of integers"}
    for name, more in {"attribute": {}, "explain": {"spans": None}}.items():
        allowed: dict[str, set[str]] = {
            "inp": set(),
            "target": {"nothing", "a name", "a text", *ids},
            "gen_args": {"nothing"},
            # Of as many tokens as are explained.
            "against": {"nothing", "an integer", "a list of integers"},
        }
        if more:
            allowed["spans"] = {"nothing"}
        calls[f"GenerationAttribution.{name}"] = Call(
            getattr(generation, name), given | more, allowed
        )
    return calls


def metric_calls() -> dict[str, Call]:
    scored = torch.rand(TEXTS.shape, generator=torch.Generator().manual_seed(0))
    evidence = torch.zeros(TEXTS.shape, dtype=torch.bool)
    evidence[:, 1] = True
    searched = {
        "forward_func": forward,
        "inputs": TEXTS,
        "baselines": 103,
        "target": 1,
    }
    calls = {"aopc_bounds": Call(metrics.aopc_bounds, searched)}
    for name in (*metrics.METRICS, "deletion_curve", "insertion_curve", "faithfulness"):
        calls[name] = Call(getattr(metrics, name), searched | {"attributions": scored})
    for name in ("hit", "rank", "average_precision", "f1"):
        calls[f"evidence_{name}"] = Call(
            getattr(metrics, f"evidence_{name}"),
            {"attributions": scored, "evidence": evidence},
        )
    return calls


def parts_of_slalom() -> dict[str, Call]:
    """SLALOM's own parts, and those of texts."""
    nowhere = torch.zeros(2, 4, dtype=torch.bool)
    counts = torch.tensor([[1, 0], [0, 1], [1, 1], [2, 1], [1, 2]]).double()
    data = QueryData.pad([counts], [torch.arange(5.0)])
    model = fit_slalom(data).model
    drawn = {"types": [0, 1, 0], "n_queries": 4, "generator": torch.Generator()}
    placed = {"n_positions": 8, "n_queries": 4, "generator": torch.Generator()}
    linked = {
        "outputs": torch.rand(2, 3),
        "index": torch.tensor([0, 1]),
        "link": "logits",
    }
    masked = {"keep": nowhere, "padding": nowhere}
    columns = texts.DeletableColumns(IDS, None, nowhere, nowhere)
    good: dict[Callable[..., Any], dict[str, Any]] = {
        texts.DeletableColumns: {"inputs": IDS, "additional": None, **masked},
        texts.ReplaceableInputs: {
            "inputs": IDS,
            "baselines": 0 * IDS,
            "additional": None,
            "tokens": IDS,
            **masked,
        },
        texts.DeletableWords: {"texts": ["so good"], "additional": None},
        texts.find_padding: {
            "forward_func": lambda ids, mask: ids,
            "n_inputs": 1,
            "additional": (~nowhere,),
            "shape": (2, 4),
        },
        texts.evaluate_queries: {
            "forward_func": lambda ids: ids.double(),
            "texts": columns,
            "queries": [[(0,)], [(1, 2)]],
            "targets": None,
            "internal_batch_size": 2,
            "show_progress": False,
        },
        texts.run_queries: {
            "forward_func": lambda ids: ids.double(),
            "texts": columns,
            "rows": [0],
            "queries": [(0,)],
        },
        texts.sum_over_units: {
            "scores": torch.ones(2),
            "pieces": ["so", " good"],
            "units": "word",
            "parts": None,
        },
        texts.token_pieces: {"ids": [5, 6], "tokenizer": TOKENIZER},
        metrics.METRICS["aopc"].levels: {"fractions": (0.1, 0.2)},
        texts.find_special_tokens: {
            "ids": IDS,
            "forward_func": len,
            "tokenizer": None,
        },
        texts.read_keep: {"keep": nowhere, "shape": (2, 4)},
        texts.targets_of_texts: {"target": [1, 0], "n_texts": 2},
        QueryData.pad: {
            "counts": [torch.ones(3, 2)],
            "outputs": [torch.ones(3)],
            "weights": [torch.ones(3)],
        },
        slalom.fit_slalom: {"data": data, "sink": False},
        slalom.r_squared: {"model": model, "data": data},
        slalom.score_types: {
            "name": "value",
            "model": model,
            "counts": torch.ones(1, 2),
        },
        slalom.recognise_link: {"outputs": torch.rand(2, 3)},
        slalom.fits_both_readings: {"outputs": torch.rand(2, 1)},
        slalom.log_odds: linked,
        slalom.clamped: linked,
        slalom.count_types: {"types": [0, 1], "queries": [(0, 1)]},
        slalom.draw_short: drawn,
        slalom.draw_deletions: drawn,
        slalom.draw_random_deletions: drawn,
        slalom.draw_halves: placed,
        slalom.draw_subsets: placed,
    }
    return {
        part.__qualname__: Call(part, given, None, tuple(given), ANYWHERE | IN_TEXTS)
        for part, given in good.items()
    }


def results() -> dict[str, Call]:
    """Methods of what ``explain()`` returns, and pictures of it."""
    flow_method, fitted = captum_attnflow.GeneralizedAttentionFlow, SLALOM
    of_flow = quiet(flow_method(forward).explain, TEXTS, 103, 1)
    of_slalom = quiet(fitted(forward, n_samples=20).explain, TEXTS, 103, 1)
    classifier = TextClassifier(MODEL, TOKENIZER)
    [of_text] = quiet(classifier.explain, ["a film"], "slalom", n_samples=20)
    generator = TextGenerator(causal_language_model(len(TOKENIZER)), TOKENIZER)
    [generated] = quiet(
        generator.explain, ["a film"], "attention-rollout", target="so good"
    )
    folder = tempfile.mkdtemp()
    file = f"{folder}/scores.safetensors"
    words = ["a"] * TEXTS.shape[1]
    counts = torch.ones(2, 1, of_slalom.fit.model.types.shape[1])
    picture = torch.rand(1, 3, 4, 4)
    drawn = {"attributions": torch.ones(1, 2), "input_tokens": ["a", "b"]}
    records = show.text_records([of_text])

    def saved(path: Any) -> bool:
        of_flow.save(path)
        return True

    def written(**given: Any) -> bool:
        show.save_html(**given)
        return True

    calls: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
        "Explanation.select": (of_flow.select, {"rows": slice(0, 1)}),
        "Explanation.show": (of_flow.show, {"tokens": [words, words]}),
        "Explanation.to_networkx": (
            of_flow.to_networkx,
            {"example": 0, "tokens": words},
        ),
        "Explanation.to_pandas": (
            of_flow.to_pandas,
            {"tokens": [words, words], "units": "token"},
        ),
        "Explanation.save": (saved, {"path": file}),
        "SlalomExplanation.score_tokens": (of_slalom.score_tokens, {"score": "value"}),
        "SlalomModel.shares": (of_slalom.fit.model.shares, {"counts": counts}),
        "SlalomModel()": (of_slalom.fit.model, {"counts": counts}),
        "TextAttribution.to_arrow": (of_text.to_arrow, {"units": "token"}),
        "GenerationExplanation.matrix": (
            generated.explanation.matrix,
            {"units": "token", "left_out": (), "scale": "row"},
        ),
        "GenerationExplanation.sum_over": (
            generated.explanation.sum_over,
            {"units": "word"},
        ),
        "load_results": (load_results, {"path": file}),
        "TextGenerator.explain": (
            generator.explain,
            {"prompts": ["a film"], "method": "attention-rollout", "target": "good"},
        ),
        "html_page": (show.html_page, {"picture": of_text, "model": "demo"}),
        "save_html": (
            written,
            {"picture": of_text, "path": f"{folder}/scores.html", "model": None},
        ),
        "terminal_text": (
            show.terminal_text,
            {"attribution": of_text, "by": "token"},
        ),
        "text_records": (
            show.text_records,
            {"attributions": [of_text], "tokens": None, "pieces": "wordpiece"},
        ),
        "text_records of words": (show.text_records, {"attributions": [of_text]}),
        "visualize_text": (show.visualize_text, {"records": records, "legend": True}),
        "slalom_plane": (
            show.slalom_plane,
            {"explanation": of_slalom, "tokens": words, "target": "positive"},
        ),
        "token_matrix": (
            show.token_matrix,
            {**drawn, "output_tokens": ["c"], "n_prompt": 2},
        ),
        "image_overlay": (
            show.image_overlay,
            {"attributions": picture, "images": picture, "plt_fig_axis": None},
        ),
        "flow_diagram": (
            show.flow_diagram,
            {
                "explanation": of_flow,
                "tokens": words,
                "threshold": 0.1,
                "method": "GAF",
                "target": "positive",
            },
        ),
    }
    return {
        name: Call(function, good, None, tuple(good))
        for name, (function, good) in calls.items()
    }


def sums_and_several_targets() -> dict[str, Call]:
    """The methods of attributions beside attribute() and explain()."""
    given = {
        "attributions": torch.ones(TEXTS.shape),
        "start_point": 103,
        "end_point": TEXTS,
        "target": 1,
        "additional_forward_args": None,
    }
    calls = {}
    for name in ("AttentionRollout", "AttnLRP", "SLALOM"):
        method = getattr(captum_attnflow, name)(forward)
        calls[f"{name}.compute_convergence_delta"] = Call(
            method.compute_convergence_delta, given, None, tuple(given)
        )
    rollout = captum_attnflow.AttentionRollout(forward)
    several = {"inputs": TEXTS, "targets": [0, 1]}
    for call in ("explain_targets", "score_targets"):
        function = getattr(rollout, call)
        calls[call] = Call(
            lambda function=function, **given: list(function(**given)),
            several,
            None,
            tuple(several),
        )
    return calls


def networks_and_solvers() -> dict[str, Call]:
    """Callables that take one argument as it should be, and refuse all others."""
    ends = torch.ones(1, 3, dtype=torch.bool)
    network, row = everywhere(CAPACITY), CAPACITY[:, 0, 0]
    causal = everywhere(CAPACITY.tril())
    # So wide that the integers among the wrong values are indices of it.
    wide = everywhere(torch.rand(32, 1, 32, 32))
    indices = {"one dimension of integers", "ids of one text"}
    optional = {"nothing"}
    counts = {
        *("an integer", "a large integer", "a huge integer", "an integer of NumPy"),
    }
    numbers = {"nothing", "a fraction"}
    signed = {"negative numbers"}
    untold: set[str] = set()
    calls: dict[str, tuple[Callable[..., Any], dict[str, Any], dict[str, set[str]]]]
    calls = {
        "LayeredNetwork": (
            LayeredNetwork,
            {"capacity": CAPACITY, "source": ends, "sink": ends},
            {"capacity": {"infinite numbers"}, "source": untold, "sink": untold},
        ),
        "select": (wide.select, {}, {"index": indices}),
        "take": (wide.take, {}, {"positions": indices}),
        "restrict": (network.restrict, {}, {"live": untold}),
        "cut_capacity": (network.cut_capacity, {}, {"cut": untold}),
        "divergence": (
            network.divergence,
            {"flow": CAPACITY, "source_flow": row, "sink_flow": row},
            {
                "flow": signed | {"infinite numbers", "numbers that are none"},
                "source_flow": untold,
                "sink_flow": untold,
            },
        ),
        "to_networkx": (
            network.to_networkx,
            {},
            {"example": untold, "tokens": optional, "flow": optional | signed},
        ),
        "to_networkx of a flow": (
            network.to_networkx,
            {"flow": CAPACITY},
            {"direct": optional},
        ),
        "solve_flow": (
            solve_flow,
            {"network": network},
            {"network": untold, "solver": untold},
        ),
        "solve_sources": (
            solvers.solve_sources,
            {"network": network},
            {"network": untold, "solver": untold},
        ),
        "score_tokens": (
            scores.score_tokens,
            {"network": network, "game": "joint"},
            {"network": untold, "game": untold, "solver": untold},
        ),
        "BarrierSolver.solve": (BarrierSolver().solve, {}, {"network": untold}),
        "DinicSolver.solve": (DinicSolver().solve, {}, {"network": untold}),
        "DinicSolver": (DinicSolver, {}, {"compiled": optional | {"a bool"}}),
        "SciPySolver.solve": (SciPySolver().solve, {}, {"network": untold}),
        "NetworkXSolver.solve": (NetworkXSolver().solve, {}, {"network": untold}),
        "NetworkXSolver": (NetworkXSolver, {}, {"algorithm": untold}),
        "check_solver": (scores.check_solver, {}, {"solver": untold}),
        "find_solver": (solvers.find_solver, {}, {"solver": untold}),
        "BarrierSolver": (
            BarrierSolver,
            {},
            {
                "epsilon": {"a fraction"},
                "mu": numbers | counts | {"a number"},
                "tolerance": {"a fraction"},
                "max_iterations": counts,
                "max_edges": counts,
                "compiled": optional | {"a bool"},
            },
        ),
        "conserve": (
            scores.conserve,
            {"messages": CAPACITY, "read_out": row},
            {"messages": signed, "read_out": untold},
        ),
        "read_out_relevance": (
            scores.read_out_relevance,
            {"output": torch.ones(1), "read_out": ends, "streams": None},
            {"output": untold, "read_out": untold, "streams": optional},
        ),
        "normalize": (
            scores.normalize,
            {"scores": row, "network": network, "normalization": None},
            {"scores": untold, "network": untold},
        ),
        "normalize of a causal network": (
            scores.normalize,
            {"scores": row, "network": causal},
            {"normalization": optional},
        ),
        "check_normalization": (
            scores.check_normalization,
            {},
            {"normalization": optional},
        ),
        "check_residual": (flow.check_residual, {}, {"residual": numbers}),
        "information_tensor": (
            flow.information_tensor,
            {"record": None, "information": "AGF"},
            {"record": untold, "information": untold},
        ),
        "message_tensor": (flow.message_tensor, {}, {"record": untold}),
        "build_network": (
            flow.build_network,
            {"information": "AGF", "residual": None},
            {"record": untold},
        ),
        "add_residual": (
            flow.add_residual,
            {"capacity": CAPACITY},
            {"residual": numbers},
        ),
    }
    for residual in (None, 0.5, "free"):
        calls[f"add_residual of {residual}"] = (
            flow.add_residual,
            {"residual": residual},
            {"capacity": {"an empty batch"}},
        )
    return {name: Call(*call, None, tuple(WRONG)) for name, call in calls.items()}


def files_and_tables() -> dict[str, Call]:
    """What takes results, and refuses all else."""
    result = TextAttribution("a", ("a",), (1.0,), "x", None, "x")
    untold: set[str] = set()
    optional = {"nothing"}
    columns = {
        "results": untold,
        "tokens": optional,
        "units": untold,
        "pieces": optional,
        "special_tokens": {
            "an empty list",
            "an empty tuple",
            "an empty dict",
            "a dict",
            "a dict of a tensor",
            "names in an array",
        },
    }
    allowed = {"results": untold, "provenance": optional}
    return {
        "to_arrow": Call(to_arrow, {"results": result}, columns),
        "to_pandas": Call(to_pandas, {"results": result}, columns),
        "save_results": Call(
            save_results, {"results": result, "path": "/dev/null"}, allowed
        ),
        "provenance": Call(
            TextClassifier(MODEL, TOKENIZER).provenance, {}, {"method": untold}
        ),
    }


def pipelines() -> dict[str, Call]:
    """The explainers of texts; names of models are not looked up on the network."""
    config = transformers.BertConfig(
        vocab_size=len(TOKENIZER),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
    )
    labels = transformers.AutoModelForTokenClassification.from_config(config)
    answers = transformers.AutoModelForQuestionAnswering.from_config(config)
    vision_model, processor = vision_language_model("LLaVA")
    image = str(Path(tempfile.mkdtemp()) / "image.png")
    Image.new("RGB", (16, 16)).save(image)
    pairs = [("which film ?", "a gripping film"), ("what ?", "so dull")]
    method = {"method": "attention-rollout"}
    optional = {"target": None, "truncation": "window", "stride": 1}
    classifier = TextClassifier(MODEL, TOKENIZER)
    calls: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
        "TextClassifier": (
            classifier.explain,
            {"texts": ["a film", pairs[0]], **method, **optional},
        ),
        "TextClassifier.encode": (classifier.encode, {"texts": ["a film"]}),
        "TokenClassifier": (
            TokenClassifier(labels.eval(), TOKENIZER).explain,
            {
                "texts": ["a gripping film"],
                "words": [0],
                "unit": "entity",
                **method,
                **optional,
            },
        ),
        "QuestionAnswerer": (
            QuestionAnswerer(answers.eval(), TOKENIZER).explain,
            {
                "pairs": pairs,
                "part": "both",
                "max_answer_tokens": 2,
                **method,
                **optional,
            },
        ),
        "SentenceSimilarity": (
            SentenceSimilarity(MODEL.bert, TOKENIZER).explain,
            {"pairs": pairs, "truncation": "refuse", **method},
        ),
        "ImageTextGenerator": (
            ImageTextGenerator(vision_model, processor).explain,
            {
                "images": [image],
                "prompts": ["<image> what is this ?"],
                **method,
                "target": "a cat",
                "max_new_tokens": 2,
                "output": "logit",
                "against": None,
                "spans": None,
                "system": None,
                "units": "token",
                "left_out": (),
                "scale": "row",
            },
        ),
        "ImageTextGenerator of parts": (
            ImageTextGenerator,
            {"model": vision_model, "processor": processor},
        ),
        "TextClassifier of parts": (
            TextClassifier,
            {"model": MODEL, "tokenizer": TOKENIZER},
        ),
        "SentenceSimilarity of parts": (
            SentenceSimilarity,
            {"model": MODEL.bert, "tokenizer": TOKENIZER, "pooling": "cls"},
        ),
    }
    kinds = tuple(ANYWHERE | IN_TEXTS)
    explaining = {
        f"{name} by pipeline": Call(function, good, None, tuple(good), kinds)
        for name, (function, good) in calls.items()
    }
    no_names = [
        kind for kind, value in ANYWHERE.items() if not isinstance(value, (str, Path))
    ]
    folder = str(DEMO_MODEL_PATH)
    return {
        **explaining,
        "TextClassifier.load": Call(
            TextClassifier.load, {"name": folder}, None, ("name",), no_names
        ),
        "SentenceSimilarity.load": Call(
            SentenceSimilarity.load, {"name": folder}, None, ("name",), no_names
        ),
        "SentenceSimilarity.load of a pooling": Call(
            SentenceSimilarity.load, {"name": folder}, None, ("pooling",)
        ),
    }


def table_calls() -> dict[str, Call]:
    """The settings of a table, which are checked together, and its parts."""

    def check(**given: Any) -> bool:
        tables.TableJob(**given).check()
        return True

    fields = tuple(field.name for field in dataclasses.fields(tables.TableJob))
    job = {"data": "texts.csv", "output": "scores"}
    return {
        "TableJob": Call(check, job, None, fields),
        "read_part": Call(tables.read_part, {"given": "1/2"}, None, ("given",)),
        "explain_table": Call(tables.explain_table, {}, {"job": set()}),
    }


def summaries() -> dict[str, Call]:
    """A summary, of a folder that is there; others are in tests/summary."""
    folder = Path(tempfile.mkdtemp())
    rows = [explained(row, ["so", "good"], [1, 2]) for row in range(3)]
    options = ("label_column", "top", "min_texts", "max_words")
    good = {"folders": write_folder(folder, rows)}
    return {"summarize": Call(summarize, good, wrong=options)}


CALLS = {
    **files_and_tables(),
    **attributions(),
    **generation_calls(),
    **summaries(),
    **pipelines(),
    **{f"metrics.{name}": call for name, call in metric_calls().items()},
    **parts_of_slalom(),
    **results(),
    **sums_and_several_targets(),
    **networks_and_solvers(),
    **table_calls(),
    "capture_attention": Call(
        capture_attention, {"forward_func": forward, "inputs": (TEXTS,), "target": 1}
    ),
}


def unclear(call: Call, argument: str, kind: str) -> str | None:
    """Return what is unclear about the answer to a wrong argument, if anything."""
    strict = call.allowed is not None
    allowed = strict and kind in call.allowed[argument]
    try:
        quiet(call.function, **{**call.good, argument: WRONG[kind]})
    except ModelError:
        return None
    except AssertionError as error:  # Captum's own
        return "refused by Captum" if strict or not str(error) else None
    except (ValueError, OSError) as error:  # of files: a name that is a folder's
        message = str(error)
        # A shape of the other argument may be what disagrees.
        named = re.search(rf"\b({argument}|capacity|output|read_out)\b", message)
        in_words = (
            WORDS.search(message.lower())
            and not WRONG_ARTICLE.search(message)
            and (not strict or (named and len(message) < 600))
        )
        return None if in_words and not allowed else message
    except Exception as error:
        return repr(error)
    return "accepted" if strict and not allowed else None


def arguments_of(call: Call) -> list[str]:
    """Name the arguments that are given wrongly."""
    if call.wrong is not None:
        return list(call.wrong)
    if call.allowed is not None:
        return list(call.allowed)
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(call.function).parameters.values()
    return [each.name for each in parameters if each.kind not in several]


@pytest.mark.parametrize("name", CALLS)
def test_wrong_arguments_get_an_error_in_words(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some of them are names of files
    call = CALLS[name]
    found = {
        f"{argument}={kind}": reason[:160]
        for argument in arguments_of(call)
        for kind in call.kinds
        if (reason := unclear(call, argument, kind)) is not None
    }
    assert not found


@pytest.mark.parametrize(
    "name", [name for name, call in CALLS.items() if call.allowed is None]
)
def test_the_calls_work_as_they_are(name):
    assert quiet(CALLS[name].function, **CALLS[name].good) is not None


@pytest.mark.parametrize("name", ["source", "sink"])
def test_a_terminal_on_another_device_is_refused(name):
    call = CALLS["LayeredNetwork"]
    elsewhere = call.good[name].to("meta")
    with pytest.raises(ValueError, match=f"{name} is a meta tensor; give"):
        LayeredNetwork(**{**call.good, name: elsewhere})


def test_a_text_without_queries_is_not_fitted():
    empty = QueryData.pad([torch.ones(0, 2).double()], [torch.ones(0)])
    with pytest.raises(ValueError, match="no query"):
        fit_slalom(empty)


def test_a_module_that_is_no_layer_of_the_model_is_refused():
    with pytest.raises(ValueError, match="did not run"):
        captum_attnflow.LayerAttentionRollout(forward, nn.Linear(2, 2)).attribute(
            TEXTS, target=1
        )


@pytest.mark.parametrize("name", ["RelevanceFlow", "SLALOM", "LayerAttnLRP"])
def test_a_pipeline_is_no_forward_function(name):
    pipeline = transformers.pipeline(
        "text-classification", model=MODEL, tokenizer=TOKENIZER
    )
    others = (LAYER,) if name.startswith("Layer") else ()
    with pytest.raises(ValueError, match=r"a transformers pipeline.*\.model\(ids\)"):
        getattr(captum_attnflow, name)(pipeline, *others)
