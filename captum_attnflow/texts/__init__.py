"""Parts of texts as inputs of a forward function: delete tokens, or replace them.

The room uses torch, Captum and the forward function, and knows no attribution method.
A new kind of input is one class with the members of
:class:`~captum_attnflow.texts.absence.PerturbableTexts`.
"""

from captum_attnflow.targets import Target, targets_of_texts
from captum_attnflow.texts.absence import (
    Absence,
    DeletableColumns,
    DeletableWords,
    PerturbableTexts,
    Query,
    ReplaceableInputs,
    ReplaceableTexts,
)
from captum_attnflow.texts.evaluation import (
    evaluate_queries,
    find_whole_arguments,
    run_queries,
)
from captum_attnflow.texts.prompts import ChatInput, EmbeddedInput, TemplateTokens
from captum_attnflow.texts.token_axis import (
    TokenAxis,
    check_tokenizer,
    config_of,
    find_padding,
    find_special_tokens,
    parameter_names,
    read_keep,
)
from captum_attnflow.texts.units import Unit, Units, sum_over_units, token_pieces

__all__ = [
    "Absence",
    "ChatInput",
    "DeletableColumns",
    "DeletableWords",
    "EmbeddedInput",
    "PerturbableTexts",
    "Query",
    "ReplaceableInputs",
    "ReplaceableTexts",
    "Target",
    "TemplateTokens",
    "TokenAxis",
    "Unit",
    "Units",
    "check_tokenizer",
    "config_of",
    "evaluate_queries",
    "find_padding",
    "find_special_tokens",
    "find_whole_arguments",
    "parameter_names",
    "read_keep",
    "run_queries",
    "sum_over_units",
    "targets_of_texts",
    "token_pieces",
]
