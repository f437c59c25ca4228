"""``summarize()``: folders of explained texts, seen as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from os import PathLike
from pathlib import Path

from matplotlib.figure import Figure
from rich.text import Text

from captum_attnflow._checks import (
    check_integer,
    check_type,
    counted,
    described,
    type_of,
)
from captum_attnflow._files import named_in_errors, replace_file
from captum_attnflow.scored_tokens import printable
from captum_attnflow.show.document import figure_bytes
from captum_attnflow.show.figures import shown_in_notebooks
from captum_attnflow.summary.folder import ScoreFolder
from captum_attnflow.summary.folder_summary import (
    FolderSummary,
    Settings,
    explained_texts,
    facts,
    percent,
    summarize_folder,
)
from captum_attnflow.summary.page import (
    draw_agreement,
    draw_positions,
    draw_words,
    summary_page,
)
from captum_attnflow.summary.ranks import Agreement, compare
from captum_attnflow.summary.words import words_csv

_TOP_K = 5
_PAGE_HEIGHT = 720
_PRINTED_LABELS = 5
_PRINTED_WORDS = 5


@dataclass(frozen=True)
class Summary:
    """Explained texts as a whole: the value of a notebook's cell, or printed by rich.

    Attributes:
        folders (tuple of FolderSummary): What each folder looks like.
        agreement (Agreement, optional): How far several folders agree; None of one.
    """

    folders: tuple[FolderSummary, ...]
    agreement: Agreement | None

    def to_html(self) -> str:
        """Return a page of its own, which needs neither scripts nor a network."""
        return summary_page(self.folders, self.agreement)

    def to_csv(self) -> str:
        """Return the words of all folders and labels, one per line, with all digits."""
        return words_csv([(folder.name, folder.labels) for folder in self.folders])

    def figures(self) -> dict[str, Figure]:
        """Draw the words, the positions and the agreement.

        Returns:
            dict[str, Figure]: By name: ``"words"`` and ``"positions"``, of several
            folders ``"words-1"``, ``"positions-1"``... and ``"agreement"``.
        """
        figures: dict[str, Figure] = {}
        for number, folder in enumerate(self.folders, 1):
            suffix = "" if self.agreement is None else f"-{number}"
            figures[f"words{suffix}"] = draw_words(folder.labels)
            figures[f"positions{suffix}"] = draw_positions(folder.positions)
        if self.agreement is not None:
            figures["agreement"] = draw_agreement(self.agreement)
        return {name: shown_in_notebooks(figure) for name, figure in figures.items()}

    def save(self, output: str | PathLike[str]) -> tuple[Path, ...]:
        """Write ``summary.html``, ``words.csv`` and every picture as PNG and SVG.

        Args:
            output (str or path): A folder; it is made if it is not there. Files in it
                are replaced, each as a whole.

        Returns:
            tuple of Path: The files.

        Raises:
            OSError: If one cannot be written, naming it.
        """
        folder = Path(output)
        with named_in_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        contents: dict[str, str | bytes] = {
            "summary.html": self.to_html(),
            "words.csv": self.to_csv(),
        }
        for name, figure in self.figures().items():
            for ending in ("png", "svg"):
                contents[f"{name}.{ending}"] = figure_bytes(figure, ending)
        for name, content in contents.items():
            replace_file(folder / name, content)
        return tuple(folder / name for name in contents)

    def _repr_html_(self) -> str:
        return (
            f'<iframe srcdoc="{escape(self.to_html())}" sandbox="" title="Summary" '
            f'style="width: 100%; height: {_PAGE_HEIGHT}px; border: 0"></iframe>'
        )

    def __rich__(self) -> Text:
        return _summary_text(self.folders, self.agreement)


def summarize(
    folders: str | PathLike[str] | Sequence[str | PathLike[str]],
    label_column: str | None = None,
    top: int = 20,
    min_texts: int = 5,
    max_words: int = 250_000,
) -> Summary:
    r"""Summarize tables of explained texts, or compare those of several methods.

    Every folder is read twice as a stream, and once more to compare several. Memory
    depends on the number of distinct words alone, which ``max_words`` bounds.

    Args:
        folders (str, path or sequence): What ``captum-attnflow explain --data`` has
            written; several of the same data are compared.
        label_column (str, optional): A column of true labels that was carried along:
            shows where the model is confidently wrong.
        top (int): How many words on each side of a label, and how many wrong texts,
            are shown.
        min_texts (int): At least 2; a word in fewer texts of a label is left out.
        max_words (int): Distinct words by label that are counted at once. Of more, the
            rarest are dropped, and the summary says so.

    Returns:
        Summary: Shows itself in a notebook and a terminal; ``save`` writes it.

    Raises:
        FileNotFoundError: If there is no such folder, or nothing in it.
        ValueError: If an argument is wrong, a folder holds no explained text or is
            damaged, or several folders are of different data.

    Examples::

        >>> import tempfile
        >>> from pathlib import Path
        >>> row = '{"row": %d, "text": "so good", "status": "explained"'
        >>> row += ', "target": "pos"'
        >>> row += ', "tokens": ["[CLS]", "so", "good"], "scores": [0, %d, 2]}\n'
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "manifest.json").write_text('{"format": 1}')
        ...     rows = "".join(row % (number, number % 2) for number in range(6))
        ...     _ = Path(folder, "part-000000.jsonl").write_text(rows)
        ...     summary = summarize(folder)
        >>> [label] = summary.folders[0].labels
        >>> [(word.word, word.share.n) for word in label.speak_for]
        [('good', 6)]
    """
    paths = _checked_folders(folders)
    for name, given, least in (
        ("top", top, 1),
        ("min_texts", min_texts, 2),
        ("max_words", max_words, 1),
    ):
        check_integer(name, given, least)
    if label_column is not None:
        check_type("label_column", label_column, str, "the name of a column")
    opened = [ScoreFolder.open(path) for path in paths]
    if label_column is not None:
        for folder in opened:
            folder.check_label_column(label_column)
    names = _names(opened)
    _check_same_contrast(opened, names)
    settings = Settings(label_column, top, min_texts, max_words)
    done = tuple(
        summarize_folder(folder, name, settings)
        for folder, name in zip(opened, names, strict=True)
    )
    agreement = None
    if len(done) > 1:
        agreement = compare(
            names,
            [
                explained_texts(folder, of.tokenization)
                for folder, of in zip(opened, done, strict=True)
            ],
            [of.is_signed for of in done],
            _TOP_K,
        )
    return Summary(done, agreement)


def _checked_folders(given: object) -> list[Path]:
    alone = isinstance(given, (str, PathLike))
    listed = [given] if alone else given
    if not isinstance(listed, (list, tuple)) or not listed:
        raise ValueError(
            f"folders={described(given)} is {type_of(given)}; give a "
            "folder, or a list of at least one"
        )
    for folder in listed:
        check_type("a folder", folder, (str, PathLike), "its path")
    paths = [Path(folder) for folder in listed]
    for path in paths:
        if [other.resolve() for other in paths].count(path.resolve()) > 1:
            raise ValueError(
                f"the folder {path} is given more than once; give every folder once"
            )
    return paths


def _names(folders: Sequence[ScoreFolder]) -> list[str]:
    """Methods name folders, where they tell them apart."""
    methods = [str(folder.manifest.get("method") or "") for folder in folders]
    if all(methods) and len({*methods}) == len(methods):
        return methods
    return [str(folder.path) for folder in folders]


def _check_same_contrast(folders: Sequence[ScoreFolder], names: Sequence[str]) -> None:
    """Refuse to compare explanations of different outputs."""
    for folder, name in zip(folders, names, strict=True):
        if folder.against != folders[0].against:
            said = [
                "labels alone"
                if each.against is None
                else f"labels rather than {printable(each.against)}"
                for each in (folders[0], folder)
            ]
            raise ValueError(
                f"{names[0]} explains {said[0]} and {name} {said[1]}, so that their "
                "scores are of different outputs. Give folders with the same --against "
                "to compare methods, or summarize each alone"
            )


def _summary_text(
    folders: Sequence[FolderSummary], agreement: Agreement | None
) -> Text:
    """Print the counts, the first words of the first labels and the verdicts."""
    parts = [_folder_text(folder) for folder in folders]
    if agreement is not None:
        parts.append(_agreement_text(agreement))
    return Text("\n\n").join(parts)


def _folder_text(folder: FolderSummary) -> Text:
    text = Text(printable(folder.name), "bold")
    counts = [f"{name} {value}" for name, value in facts(folder.counts).items()]
    text.append(f"  {', '.join(counts)}\n")
    printed = folder.labels[:_PRINTED_LABELS]
    for of in printed:
        n_texts = counted(of.n_texts, "text")
        text.append(printable(of.label), "bold").append(f" ({n_texts})\n")
        if not of.words:
            continue
        for side, words in (("for", of.speak_for), ("against", of.speak_against)):
            shown = ", ".join(
                f"{printable(word.word)} {percent(word.share.mean)} ({word.share.n:,})"
                for word in words[:_PRINTED_WORDS]
            )
            none = "no word whose interval lies on this side of 0"
            text.append(f"  {side:8}{shown or none}\n")
    bare = [printable(of.label) for of in printed if not of.words]
    if bare:
        fewer = ", or count words in fewer: min_texts=2, --min-texts 2"
        text.append(
            f"no word is in at least {folder.min_texts} texts of {' or '.join(bare)}: "
            f"explain more texts{fewer if folder.min_texts > 2 else ''}\n"
        )
    text.append(folder.positions.verdict)
    if folder.wrong is not None:
        text.append(
            f"\n{folder.wrong.n_wrong:,} of "
            f"{counted(folder.wrong.n_compared, 'text')} "
            f"predicted otherwise than {printable(folder.wrong.label_column)} says"
        )
    return text


def _agreement_text(agreement: Agreement) -> Text:
    n_compared = counted(agreement.n_compared, "text")
    text = Text("agreement", "bold").append(f" on {n_compared}")
    for pair in agreement.pairs:
        rho = pair.rank_correlation
        text.append(
            f"\n{printable(pair.first)}, {printable(pair.second)}: rank correlation of "
            f"{pair.compared} {rho.mean:.2f} [{rho.low:.2f}, {rho.high:.2f}], same of "
            f"the top {agreement.top_k}: {100 * pair.top_overlap.mean:.0f} % "
            f"(chance {100 * pair.chance_overlap:.0f} %)"
        )
    return text
