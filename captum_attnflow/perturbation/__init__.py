"""Texts with parts taken away, put to a forward function.

It knows torch, Captum, the forward function and what a query is (``Query`` of
:mod:`captum_attnflow.surrogate`), never a SLALOM function or its fit. A new
kind of input is one file with a class like those in
:mod:`~captum_attnflow.perturbation.deletion`.
"""

from captum_attnflow.perturbation.ask import ask, run_queries
from captum_attnflow.perturbation.baseline import (
    ReplaceableActivations,
    ReplaceableInputs,
    replaced_activation,
)
from captum_attnflow.perturbation.deletion import DeletableColumns
from captum_attnflow.perturbation.padding import find_padding, parameter_names
from captum_attnflow.perturbation.special_tokens import (
    check_tokenizer,
    find_special_tokens,
    read_keep,
)
from captum_attnflow.perturbation.texts import Absence, PerturbableTexts
from captum_attnflow.perturbation.words import DeletableWords
from captum_attnflow.targets import Target, targets_of_texts

__all__ = [
    "Absence",
    "DeletableColumns",
    "DeletableWords",
    "PerturbableTexts",
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
