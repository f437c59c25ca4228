"""Studies: attribution methods compared on models and data by their faithfulness."""

from captum_attnflow.study.data import DataSource, TextData, read_data
from captum_attnflow.study.methods import METHODS, Method
from captum_attnflow.study.run import run_study
from captum_attnflow.study.settings import REMOVALS, Study
from captum_attnflow.study.table import Table

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
