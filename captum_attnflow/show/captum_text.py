"""Captum's text picture, made safe: no token is read as markup, no NaN is painted."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from captum.attr import visualization as captum_visualization
from IPython.display import HTML
from IPython.utils.capture import capture_output

from captum_attnflow.scored_tokens import escaped, relative

UNKNOWN = "-"


class _Unknown(float):
    """A number that Captum's picture is to show as not known, whatever its format."""

    def __format__(self, _: str) -> str:
        return UNKNOWN


def safe_record(
    tokens: Sequence[str],
    scores: Sequence[float],
    *,
    predicted: str = UNKNOWN,
    probability: float | None = None,
    value: float | None = None,
    true_label: str = UNKNOWN,
    target: str = UNKNOWN,
    total: float | None = None,
    convergence: float = 0.0,
) -> captum_visualization.VisualizationDataRecord:
    """Make Captum's record of one text, with tokens and labels escaped.

    Args:
        tokens (sequence of str): The tokens.
        scores (sequence of float): One per token; the record holds them divided by
            their largest absolute value.
        predicted (str): The predicted label.
        probability (float, optional): Its probability.
        value (float, optional): The output, in regression. It is shown where a label
            has its probability.
        true_label (str): The true label.
        target (str): The label that the scores belong to.
        total (float, optional): The attribution score; the sum of the scores by
            default.
        convergence (float): The convergence score, which the picture does not show.
    """
    number = value if probability is None else probability
    return captum_visualization.VisualizationDataRecord(
        word_attributions=torch.tensor(relative(scores)),
        pred_prob=_Unknown("nan") if number is None else number,
        pred_class=escaped(predicted),
        true_class=escaped(true_label),
        attr_class=escaped(target),
        attr_score=sum(scores) if total is None else total,
        raw_input_ids=[escaped(token) for token in tokens],
        convergence_score=convergence,
    )


def visualize_text(
    records: Sequence[captum_visualization.VisualizationDataRecord], legend: bool = True
) -> HTML:
    """Render records by Captum's ``visualize_text``.

    Captum displays as it renders, which shows the picture twice at the end of a
    notebook's cell and prints an object's name elsewhere. Here it is returned alone.

    Args:
        records (sequence of VisualizationDataRecord): Such as those of
            :func:`~captum_attnflow.show.text_records`, which are escaped;
            Captum's function puts the tokens of others into the page as they are.
        legend (bool): Whether to say what the colours mean.

    Returns:
        IPython.display.HTML: The value of a notebook's cell; ``.data`` is its HTML, and
        :func:`~captum_attnflow.show.save_html` writes it to a file.
    """
    with capture_output():
        picture: HTML = captum_visualization.visualize_text(records, legend)
    return picture
