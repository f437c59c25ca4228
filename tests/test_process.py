"""What the package changes of the process that it works in: nothing.

Each claim has a process of its own, as most of these settings are made but once. It is
forked from one that has loaded the libraries, which takes seconds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# How each setting is read, by name.
SETTINGS = """
import decimal, gc, locale, logging, os, random, signal, sys, threading, warnings
import matplotlib, numpy as np, torch
from pathlib import Path
from transformers.utils import logging as transformers_logging

def loggers():
    return {"": logging.root, **logging.root.manager.loggerDict}

def read_settings():
    return {
        "torch's threads": torch.get_num_threads(),
        "torch's threads between operations": torch.get_num_interop_threads(),
        "torch's dtype": torch.get_default_dtype(),
        "torch's device": torch.get_default_device(),
        "torch's random state": torch.get_rng_state().tolist(),
        "torch's gradients": (
            torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        ),
        "torch's determinism": torch.are_deterministic_algorithms_enabled(),
        "torch's precision": torch.get_float32_matmul_precision(),
        "torch's kernels of attention": (
            torch.backends.cuda.flash_sdp_enabled(),
            torch.backends.cuda.math_sdp_enabled(),
            torch.backends.mha.get_fastpath_enabled(),
        ),
        "torch's printing": vars(torch._tensor_str.PRINT_OPTS).copy(),
        "NumPy's random state": str(np.random.get_state()),
        "NumPy's errors and printing": (np.geterr(), str(np.get_printoptions())),
        "Python's random state": random.getstate(),
        "warnings": (list(warnings.filters), warnings.showwarning),
        "matplotlib": dict.copy(matplotlib.rcParams),
        "logging": {
            name: (logger.level, list(logger.handlers), logger.propagate)
            for name, logger in loggers().items()
            if isinstance(logger, logging.Logger) and name in names
        },
        "transformers' bars": transformers_logging.is_progress_bar_enabled(),
        "transformers' verbosity": transformers_logging.get_verbosity(),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "sys": (
            sys.getrecursionlimit(), sys.getswitchinterval(), sys.excepthook,
            sys.displayhook, sys.gettrace(), sys.getprofile(), sys.stdout, sys.stderr,
            list(sys.path), threading.excepthook,
        ),
        "locale": locale.setlocale(locale.LC_ALL),
        "decimal numbers": str(decimal.getcontext()),
        "collection of garbage": (gc.isenabled(), gc.get_threshold()),
        "signals": [signal.getsignal(number) for number in signal.valid_signals()],
    }
names = set(loggers())
"""
# A library that is loaded later makes settings of its own.
LOADED = """
import networkx, numba, rich.segment, scipy.special, sklearn.linear_model, sympy
import torch._dynamo, torch._inductor.codecache, torch.optim
from captum.attr import IntegratedGradients
from transformers import PreTrainedModel
"""
CHANGES = """
after = read_settings()
changed = [name for name, was in before.items() if after[name] != was]
print("changed:", changed)
sys.exit(bool(changed))
"""
USE = """
before = read_settings()
import captum_attnflow as package
from captum_attnflow import show
from captum_attnflow.demo import DEMO_MODEL_PATH, load_demo_model
from captum_attnflow.metrics import faithfulness
from captum_attnflow.study import DataSource, Study, run_study
from captum_attnflow.pipelines.text_classification import TextClassifier

model, tokenizer = load_demo_model()
encoded = tokenizer(["a gripping , funny film"], return_tensors="pt")
ids = encoded["input_ids"]
tokens = tokenizer.convert_ids_to_tokens(ids[0])
forward = lambda ids: model(ids).logits
for name in ("AttentionFlow", "AttentionRollout", "AttnLRP", "CheferRelevance",
             "GeneralizedAttentionFlow", "RelevanceFlow", "SLALOM"):
    options = {"tokenizer": tokenizer} if name == "SLALOM" else {}
    method = getattr(package, name)(forward, **options)
    scores = method.attribute(ids, tokenizer.mask_token_id, target=1)
    faithfulness(forward, ids, scores, tokenizer.mask_token_id, target=1)
    if hasattr(method, "explain"):
        explanation = method.explain(ids, tokenizer.mask_token_id, target=1)
        explanation.show([tokens])._repr_html_()
    if name == "RelevanceFlow":
        show.flow_diagram(explanation, tokens).figure().savefig("flow.png")
show.slalom_plane(explanation, tokens).savefig("plane.png")
TextClassifier(model, tokenizer).explain(["a funny film"], "slalom")
run_study(
    Study(
        models=(str(DEMO_MODEL_PATH),),
        data=DataSource("texts.csv", "text", "label"),
        methods=("generalized-attention-flow", "slalom", "kernel-shap", "random"),
        output=Path("study"),
    )
)
"""
SOLVE = """
from captum_attnflow import BarrierSolver, LayeredNetwork, solve_flow
from captum_attnflow.flow.solvers import solve_sources
ends = torch.ones(4, 100, dtype=torch.bool)
capacity = torch.rand(4, 2, 100, 100, generator=torch.Generator().manual_seed(0))
network = LayeredNetwork(capacity, ends, ends)
before = read_settings()
solve_flow(LayeredNetwork(capacity[:1, :, :8, :8], ends[:1, :8], ends[:1, :8]))
solve_flow(network)
solve_sources(network)
"""


CLAIMS = {
    "the first compiled flow, one thread": f"torch.set_num_threads(1)\n{SOLVE}",
    "the first compiled flow, two threads": f"torch.set_num_threads(2)\n{SOLVE}",
    "a day's work": USE,
}
# A process says in a file what has changed, and by its status whether anything has.
FORK = """
import json
statuses = {}
for name, claim in json.loads(sys.argv[1]).items():
    process = os.fork()
    if not process:
        sys.stdout = sys.stderr = open(name, "w", buffering=1)
        exec(claim)
    _, statuses[name] = os.waitpid(process, 0)
print(json.dumps(statuses))
"""


@pytest.fixture(scope="module")
def processes(tmp_path_factory) -> tuple[dict[str, int], Path]:
    """The status of each claim's process, and the folder of what they say."""
    folder = tmp_path_factory.mktemp("claims")
    (folder / "texts.csv").write_text("text,label\na funny film,1\na dull film,0\n")
    claims = {name: f"{claim}\n{CHANGES}" for name, claim in CLAIMS.items()}
    process = subprocess.run(
        [sys.executable, "-c", SETTINGS + LOADED + FORK, json.dumps(claims)],
        # More threads than torch uses: both may set those of one OpenMP.
        env=os.environ | {"NUMBA_NUM_THREADS": "3"},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    return json.loads(process.stdout), folder


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
@pytest.mark.parametrize("claim", CLAIMS)
def test_all_settings_are_left_as_they_were_by(claim, processes):
    pytest.importorskip("numba")
    statuses, folder = processes
    said = (folder / claim).read_text()
    assert statuses[claim] == 0, said[-2000:]
    assert "changed: []" in said
