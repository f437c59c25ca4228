"""Studies: attribution methods compared on models and data by their faithfulness."""

from typing import TYPE_CHECKING

from captum_attnflow._lazy import lazy_names

if TYPE_CHECKING:
    from captum_attnflow.study.methods import METHODS, Method
    from captum_attnflow.study.run import run_study
    from captum_attnflow.study.settings import (
        REMOVALS,
        DataSource,
        Study,
        TextData,
        read_data,
    )
    from captum_attnflow.study.table import Table
else:
    _MODULES = {
        "captum_attnflow.study.methods": ("METHODS", "Method"),
        "captum_attnflow.study.run": ("run_study",),
        "captum_attnflow.study.settings": (
            *("REMOVALS", "DataSource", "Study", "TextData", "read_data"),
        ),
        "captum_attnflow.study.table": ("Table",),
    }
    __getattr__, __dir__ = lazy_names(__name__, _MODULES)

__all__ = [
    "METHODS",
    "REMOVALS",
    "DataSource",
    "Method",
    "Study",
    "Table",
    "TextData",
    "read_data",
    "run_study",
]
