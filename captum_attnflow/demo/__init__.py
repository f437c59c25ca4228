"""The small sentiment classifier that ships inside the package."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["DEMO_MODEL_PATH", "load_demo_model"]

DEMO_MODEL_PATH: Path = Path(__file__).resolve().parent / "sentiment"
"""Folder of the packaged model, in the layout of ``save_pretrained``."""


def load_demo_model() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads the packaged sentiment classifier without any network access.

    The model is a three-layer BERT classifier of English movie-review sentences.
    It exists for demonstrations and tests; ``DEMO_MODEL_PATH / "README.md"`` states
    how it was trained and how accurate it is.

    Returns:
        tuple[PreTrainedModel, PreTrainedTokenizerBase]:
            The float32 model in evaluation mode, and its tokenizer.

    Examples::

        >>> model, tokenizer = load_demo_model()
        >>> inputs = tokenizer("a gripping , funny film", return_tensors="pt")
        >>> label = model(**inputs).logits.argmax().item()
        >>> print(model.config.id2label[label])
        positive
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from captum_attnflow._warnings import no_loading_bar

    with no_loading_bar():
        model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
            DEMO_MODEL_PATH, local_files_only=True
        )
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        DEMO_MODEL_PATH, local_files_only=True
    )
    model.train(False)
    return model, tokenizer
