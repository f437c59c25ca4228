"""Times two checkouts of the package in turns: what a change of structure costs.

``python tests/benchmarks/checkouts.py PATH_OF_THE_OTHER`` starts a process for each
checkout, lets them run every workload alternately, and prints the median ratio of
their processor times, this checkout's to the other's. Only names are used that both
have.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

ROUNDS = 9
METHODS = [
    "AttentionFlow",
    "AttentionRollout",
    "AttnLRP",
    "CheferRelevance",
    "GeneralizedAttentionFlow",
    "RelevanceFlow",
]
SHAPES = [(1, 64), (1, 128), (16, 64)]


def workloads() -> dict[str, Callable[[], object]]:
    """What is timed, by name: a method, and rows x tokens of a 6 x 384 BERT."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    import captum_attnflow
    from captum_attnflow.demo import load_demo_model

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
        initializer_range=0.18,  # attention as uneven as in a trained model
    )
    model = BertForSequenceClassification(config).eval()

    def call_of(name: str, ids: Any) -> Callable[[], object]:
        method = getattr(captum_attnflow, f"Layer{name}")(
            lambda ids: model(ids).logits, model.bert.embeddings
        )
        return lambda: method.attribute(ids, target=1)

    calls = {
        f"{name}, {shape[0]} x {shape[1]}": call_of(
            name, torch.randint(1000, 30000, shape)
        )
        for shape in SHAPES
        for name in METHODS
    }
    demo, tokenizer = load_demo_model()
    short = tokenizer(["funny but dull"] * 16, return_tensors="pt").input_ids
    slalom = captum_attnflow.SLALOM(lambda ids: demo(ids).logits, tokenizer=tokenizer)
    calls["SLALOM, 1 x 5"] = lambda: slalom.attribute(short[:1], target=1)
    attention_flow = captum_attnflow.LayerAttentionFlow(
        lambda ids: demo(ids).logits, demo.bert.embeddings
    )
    calls["AttentionFlow, 16 x 5"] = lambda: attention_flow.attribute(short, target=1)
    return calls


def answer() -> None:
    """Run workloads as their names come in, and answer with processor time."""
    calls = workloads()
    print(json.dumps(list(calls)), flush=True)
    for line in sys.stdin:
        call = calls[json.loads(line)]
        start = time.process_time()
        call()
        print(json.dumps(time.process_time() - start), flush=True)


class Checkout:
    """A process that runs the workloads with the package of one checkout."""

    def __init__(self, path: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--answer"],
            env={**os.environ, "PYTHONPATH": str(path), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.names: list[str] = self._read()

    def seconds(self, name: str) -> float:
        """Run one workload and return its processor time."""
        assert self._process.stdin is not None
        print(json.dumps(name), file=self._process.stdin, flush=True)
        seconds: float = self._read()
        return seconds

    def _read(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


def main(other: str) -> None:
    """Print for each workload both median times and the median ratio."""
    ours = Checkout(Path(__file__).parents[2])
    theirs = Checkout(Path(other).resolve())
    for name in ours.names:
        turns = [(ours.seconds(name), theirs.seconds(name)) for _ in range(ROUNDS + 1)]
        ratios = [own / their for own, their in turns[1:]]  # the first one warms up
        own, their = (1e3 * median(column) for column in zip(*turns[1:], strict=True))
        print(
            f"{name:36s} {own:9.1f} ms {their:9.1f} ms   x {median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f})",
            flush=True,
        )


if __name__ == "__main__":
    if sys.argv[1:] == ["--answer"]:
        answer()
    elif len(sys.argv) == 2:
        main(sys.argv[1])
    else:
        sys.exit("usage: python tests/benchmarks/checkouts.py PATH_OF_THE_OTHER")
