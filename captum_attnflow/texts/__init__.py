"""Texts with parts taken away, put to a forward function.

It knows torch, Captum and the forward function, never a SLALOM function. A new
kind of input is one file with a class like those in
:mod:`~captum_attnflow.texts.deletion`.
"""

from captum_attnflow.targets import Target, targets_of_texts
from captum_attnflow.texts.ask import ask, run_queries
from captum_attnflow.texts.baseline import (
    ReplaceableActivations,
    ReplaceableInputs,
    replaced_activation,
)
from captum_attnflow.texts.deletion import DeletableColumns
from captum_attnflow.texts.padding import find_padding, parameter_names
from captum_attnflow.texts.special_tokens import (
    check_tokenizer,
    find_special_tokens,
    read_keep,
)
from captum_attnflow.texts.texts import Absence, PerturbableTexts, Query
from captum_attnflow.texts.words import DeletableWords

__all__ = [
    "Absence",
    "DeletableColumns",
    "DeletableWords",
    "PerturbableTexts",
    "Query",
    "ReplaceableActivations",
    "ReplaceableInputs",
    "Target",
    "ask",
    "check_tokenizer",
    "find_padding",
    "find_special_tokens",
    "parameter_names",
    "read_keep",
    "replaced_activation",
    "run_queries",
    "targets_of_texts",
]
