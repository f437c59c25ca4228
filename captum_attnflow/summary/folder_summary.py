"""One folder of explained texts, seen as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np

from captum_attnflow.scored_tokens import printable
from captum_attnflow.summary.counts import Counts, RowCounter, WrongTable, WrongTexts
from captum_attnflow.summary.estimates import Estimate, Moments
from captum_attnflow.summary.folder import Row, ScoreFolder
from captum_attnflow.summary.positions import Positions, PositionTable
from captum_attnflow.summary.word_shares import Tokenization, WordShares, read_words
from captum_attnflow.summary.words import LabelWords, WordTable, add_examples

_SAMPLE = 1000  # explained rows in which the convention of the tokens is looked for
_N_EXAMPLES = 3
_ROUNDING = 1e-6  # of shares; methods without a sign may give -1e-17


@dataclass(frozen=True)
class Settings:
    """What a summary shows.

    Attributes:
        label_column (str, optional): The column of true labels.
        top (int): How many words on each side of a label, and how many wrong texts.
        min_texts (int): A word in fewer texts of a label is left out.
        max_words (int): Distinct words by label that are counted at once.
    """

    label_column: str | None
    top: int
    min_texts: int
    max_words: int


@dataclass(frozen=True)
class FolderSummary:
    """One folder of explained texts, seen as a whole.

    Attributes:
        name (str): Its method, or its path where methods are the same.
        path (Path): The folder.
        manifest (mapping): What its manifest says.
        counts (Counts): Its rows.
        tokenization (Tokenization): How its tokens became words.
        is_signed (bool): Whether there are negative scores of words.
        special_share (Estimate): The special tokens' part of a text's absolute scores.
        labels (tuple of LabelWords): The words for and against every label, the most
            frequent label first.
        min_texts (int): Words in fewer texts are left out.
        floor (int): The most texts of a word that was dropped since there were too many
            words; 0 if none was.
        positions (Positions): Where in a text the scores are.
        wrong (WrongTexts, optional): Where the model is confidently wrong; None without
            a label column.
    """

    name: str
    path: Path
    manifest: Mapping[str, Any]
    counts: Counts
    tokenization: Tokenization
    is_signed: bool
    special_share: Estimate
    labels: tuple[LabelWords, ...]
    min_texts: int
    floor: int
    positions: Positions
    wrong: WrongTexts | None


def explained_texts(
    folder: ScoreFolder, tokenization: Tokenization
) -> Iterator[WordShares]:
    """Yield a folder's explained texts as words, but those without shares."""
    for row in folder.rows():
        if row.reason is None:
            text = read_words(row, tokenization)
            if text is not None:
                yield text


def summarize_folder(
    folder: ScoreFolder, name: str, settings: Settings
) -> FolderSummary:
    """Read a folder twice: to count its words, and for examples of those shown.

    Raises:
        ValueError: If it holds no explained text, or is damaged.
    """
    label_column, top = settings.label_column, settings.top
    explained: Iterator[Row] = (row for row in folder.rows() if row.reason is None)
    tokenization = Tokenization.of(folder.manifest, islice(explained, _SAMPLE))
    counter, positions = RowCounter(), PositionTable()
    words = WordTable(settings.max_words)
    special_share, is_signed, wrong = Moments(1), False, None
    if label_column is not None:
        wrong = WrongTable(label_column, _class_names(folder.manifest), top)
    for number, rows in groupby(folder.rows(label_column), lambda row: row.row):
        texts: list[WordShares] = []
        for row in rows:
            text = None if row.reason is not None else read_words(row, tokenization)
            counter.add(row, text is not None)
            if wrong is not None:
                wrong.add(row, text)
            if text is not None:
                texts.append(text)
                positions.add(text)
                special_share.add(number, np.array([text.special_share]))
                is_signed = is_signed or min(text.shares) < -_ROUNDING
        words.add(texts)
    counts = counter.counts(folder.manifest)
    _check_explained(folder, counts)
    labels = add_examples(
        words.by_label(settings.min_texts, top),
        explained_texts(folder, tokenization),
        _N_EXAMPLES,
    )
    return FolderSummary(
        name=name,
        path=folder.path,
        manifest=folder.manifest,
        counts=counts,
        tokenization=tokenization,
        is_signed=is_signed,
        special_share=special_share.estimates()[0],
        labels=labels,
        min_texts=settings.min_texts,
        floor=words.floor,
        positions=positions.positions(),
        wrong=None if wrong is None else wrong.wrong_texts(),
    )


def _class_names(manifest: Mapping[str, Any]) -> list[str]:
    labels = manifest.get("labels")
    return [str(label) for label in labels] if isinstance(labels, list) else []


def _check_explained(folder: ScoreFolder, counts: Counts) -> None:
    if counts.n_explained > counts.n_without_shares:
        return
    if counts.n_explained:
        reason = "all scores are 0 or not finite"
    elif counts.failed:
        most, n_failed = next(iter(counts.failed.items()))
        reason = f"{n_failed} failed with: {printable(most)}"
    else:
        reason = "its parts are empty"
    raise ValueError(
        f"{folder.path} holds {counts.n_rows} rows and no explained text to summarize: "
        f"{reason}. Give a folder with explained texts"
    )


def percent(share: float) -> str:
    """Write a share with its sign."""
    return f"{100 * share:+.1f} %"


def n_texts(n: int) -> str:
    """Write a number of texts."""
    return "1 text" if n == 1 else f"{n:,} texts"


def facts(counts: Counts) -> dict[str, str]:
    """Say what is counted, by name."""
    found = {"texts": f"{counts.n_texts:,}"}
    if counts.n_expected is not None and counts.n_expected > counts.n_texts:
        found["texts"] += f" of {counts.n_expected:,}: the run is not complete"
    if counts.n_rows != counts.n_texts:
        found["rows of the table"] = f"{counts.n_rows:,}"
    found["explained"] = f"{counts.n_explained:,}"
    found["failed"] = f"{counts.n_failed:,}"
    found["truncated"] = f"{counts.n_truncated:,}"
    if counts.n_without_shares:
        found["left out, as all scores are 0 or not finite"] = (
            f"{counts.n_without_shares:,}"
        )
    return found
