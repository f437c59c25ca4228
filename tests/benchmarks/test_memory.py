"""Peak memory of a capture against a training step of the model, fused attention."""

from __future__ import annotations

import subprocess
import sys

import pytest

SETUP = '''
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification
from captum_attnflow.flow import information_tensor
from captum_attnflow.capture import capture_attention


def peak():
    """In KiB. Not ru_maxrss, which a child inherits from its parent."""
    [line] = [
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM:")
    ]
    return int(line.split()[1])


torch.manual_seed(0)
config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12,
                    intermediate_size=1536, max_position_embeddings=1024)
model = BertForSequenceClassification._from_config(config, attn_implementation="sdpa")
ids = torch.randint(1000, 30000, (4, 1024))
before = peak()
'''
STEP = "model(ids).logits[:, 1].sum().backward()"
CAPTURE = """
record = capture_attention(lambda ids: model(ids).logits, (ids,), 1)
information_tensor(record, "AGF")
"""
PRINT = "print(peak() - before)"


def peak(work: str) -> float:
    """MiB that some work adds to the peak of a fresh process, in eval mode."""
    program = "\n".join([SETUP, "model.eval()", work, PRINT])
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return int(run.stdout) / 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_a_capture_needs_little_more_than_a_training_step(capsys):
    step, capture = peak(STEP), peak(CAPTURE)
    with capsys.disabled():
        print(
            f"\nBERT 6 x 384, batch 4, 1024 tokens: a training step {step:.0f} MiB, "
            f"capture and capacities {capture:.0f} MiB, ratio {capture / step:.2f}"
        )
    assert capture < 1.5 * step
