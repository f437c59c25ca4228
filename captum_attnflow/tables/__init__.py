"""Tables of texts in, tables of explanations out: part files and a manifest."""

from typing import TYPE_CHECKING

from captum_attnflow._lazy import lazy_names

if TYPE_CHECKING:
    from captum_attnflow.runs.sharing import read_part
    from captum_attnflow.tables.run import TableOutcome, explain_table
    from captum_attnflow.tables.settings import TableJob
else:
    _MODULES = {
        "captum_attnflow.tables.run": ("TableOutcome", "explain_table"),
        "captum_attnflow.tables.settings": ("TableJob",),
        "captum_attnflow.runs.sharing": ("read_part",),
    }
    __getattr__, __dir__ = lazy_names(__name__, _MODULES)

__all__ = ["TableJob", "TableOutcome", "explain_table", "read_part"]
