"""SLALOM's way from the outputs of queries to log-odds, with what it left open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from captum_attnflow.slalom import (
    Link,
    clamped,
    fits_both_readings,
    log_odds,
    recognise_link,
)
from captum_attnflow.texts import Target


@dataclass(frozen=True, eq=False)
class Answers:
    """The answers to the queries, for each function to fit.

    Attributes:
        rows (list of int): The text of each function. There is one function per text,
            but for the several target tokens of a language model.
        columns (list of Tensor): Shape ``(Q,)``, float64, log-odds of its queries.
        link (str): The link of all of them.
        caveats (tuple of str): Sentences on what the outputs left open.
        n_classes (int): Of how many classes a target selects one; 1 without targets.
    """

    rows: list[int]
    columns: list[Tensor]
    link: Link
    caveats: tuple[str, ...]
    n_classes: int


def link_outputs(
    outputs: Sequence[Tensor],
    targets: Sequence[Target] | None,
    link: Link | Literal["auto"],
) -> Answers:
    """Turn each text's outputs ``(Q, C)`` into log-odds, by one link for all.

    Without targets, each of the ``C`` outputs is a function of its own.
    """
    rows, parts, classes = [], [], []
    for text, output in enumerate(outputs):
        alone = [output] if targets is not None else list(output[..., None].unbind(1))
        for part in alone:
            rows.append(text)
            parts.append(part)
            classes.append(0 if targets is None else targets[text][-1] % part.shape[1])
    everything = torch.cat(parts)
    index = torch.cat(
        [
            torch.full((len(part),), one)
            for part, one in zip(parts, classes, strict=True)
        ]
    )
    chosen = recognise_link(everything) if link == "auto" else link
    odds = log_odds(everything, index, chosen)
    caveats = []
    if link == "auto" and fits_both_readings(everything):
        caveats.append(
            "the one output per input lies in [0, 1] for all queries, which scores and "
            f'probabilities may; it was read by link="{chosen}". Say by link= which '
            'it is: "probabilities", or "identity" for scores'
        )
    n_clamped = int(clamped(everything, index, chosen).sum())
    if n_clamped:
        caveats.append(
            f"{n_clamped} of {len(index)} probabilities are 0 or 1 in "
            f"{everything.dtype}; their log-odds were cut off. Let forward_func return "
            "logits"
        )
    columns = list(odds.split([len(part) for part in parts]))
    n_classes = 1 if targets is None else outputs[0].shape[1]
    return Answers(rows, columns, chosen, tuple(caveats), n_classes)
