"""A summary as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from captum_attnflow.scored_tokens import printable
from captum_attnflow.summary.agreement import Agreement
from captum_attnflow.summary.folder_summary import (
    FolderSummary,
    facts,
    n_texts,
    percent,
)

_LABELS = 5
_WORDS = 5


def summary_text(folders: Sequence[FolderSummary], agreement: Agreement | None) -> Text:
    """Print the counts, the first words of the first labels and the verdicts."""
    parts = [_folder_text(folder) for folder in folders]
    if agreement is not None:
        parts.append(_agreement_text(agreement))
    return Text("\n\n").join(parts)


def _folder_text(folder: FolderSummary) -> Text:
    text = Text(printable(folder.name), "bold")
    counted = [f"{name} {value}" for name, value in facts(folder.counts).items()]
    text.append(f"  {', '.join(counted)}\n")
    for of in folder.labels[:_LABELS]:
        text.append(printable(of.label), "bold").append(f" ({n_texts(of.n_texts)})\n")
        for side, words in (("for", of.speak_for), ("against", of.speak_against)):
            shown = ", ".join(
                f"{printable(word.word)} {percent(word.share.mean)} ({word.share.n:,})"
                for word in words[:_WORDS]
            )
            text.append(f"  {side:8}{shown or '-'}\n")
    text.append(folder.positions.verdict)
    if folder.wrong is not None:
        text.append(
            f"\n{folder.wrong.n_wrong:,} of {n_texts(folder.wrong.n_compared)} "
            f"predicted otherwise than {printable(folder.wrong.label_column)} says"
        )
    return text


def _agreement_text(agreement: Agreement) -> Text:
    text = Text("agreement", "bold").append(f" on {n_texts(agreement.n_compared)}")
    for pair in agreement.pairs:
        rho = pair.rank_correlation
        text.append(
            f"\n{printable(pair.first)}, {printable(pair.second)}: rank correlation of "
            f"{pair.compared} {rho.mean:.2f} [{rho.low:.2f}, {rho.high:.2f}], same of "
            f"the top {agreement.top_k}: {100 * pair.top_overlap.mean:.0f} % "
            f"(chance {100 * pair.chance_overlap:.0f} %)"
        )
    return text
