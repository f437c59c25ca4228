"""SLALOM: a surrogate model fitted to a model's outputs on parts of a text.

The data pass through::

    types -> queries -> outputs -> link -> fit -> scores

The modules exported here know tensors only: no model, no token and no Captum class.
:mod:`~captum_attnflow.slalom.inputs`, :mod:`~captum_attnflow.slalom.pipeline`,
:mod:`~captum_attnflow.slalom.attribution` and :mod:`~captum_attnflow.slalom.layer` put
a user's model and Captum's signatures around them. A new score is one function and one
line in :data:`~captum_attnflow.slalom.model.SCORES`.
"""

from captum_attnflow.slalom.fit import fit_slalom
from captum_attnflow.slalom.link import (
    Link,
    clamped,
    fits_both_readings,
    log_odds,
    recognise_link,
)
from captum_attnflow.slalom.model import (
    SCORES,
    Score,
    SlalomExplanation,
    SlalomFit,
    SlalomModel,
    r_squared,
    score_types,
)
from captum_attnflow.slalom.queries import (
    QueryData,
    Strategy,
    count_types,
    draw_deletions,
    draw_halves,
    draw_random_deletions,
    draw_short,
    draw_subsets,
)

__all__ = [
    "SCORES",
    "Link",
    "QueryData",
    "Score",
    "SlalomExplanation",
    "SlalomFit",
    "SlalomModel",
    "Strategy",
    "clamped",
    "count_types",
    "draw_deletions",
    "draw_halves",
    "draw_random_deletions",
    "draw_short",
    "draw_subsets",
    "fit_slalom",
    "fits_both_readings",
    "log_odds",
    "r_squared",
    "recognise_link",
    "score_types",
]
