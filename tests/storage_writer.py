"""What a process writes until it is killed.

In a module of its own: a process that is started anew can import this one by name, and
no file of tests, whose names pytest makes up.
"""

from __future__ import annotations

import torch

from captum_attnflow import GenerationExplanation

_N_TOKENS = 50_000


def alternate(path: str) -> None:
    """Write one of two explanations over the other until killed."""
    for number in range(10**6):
        large(number % 2).save(path)


def large(number: int) -> GenerationExplanation:
    scores = torch.full((1, _N_TOKENS), float(number))
    tokens = ["x"] * _N_TOKENS
    return GenerationExplanation(tokens, scores, torch.zeros(1), torch.zeros(1))
