"""``captum-attnflow explain``: token attributions of texts."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from captum._utils.progress import progress
from rich.console import Console
from transformers.utils import logging as transformers_logging

from captum_attnflow.cli._messages import errors_told
from captum_attnflow.demo import DEMO_MODEL_PATH
from captum_attnflow.surrogate import SCORES
from captum_attnflow.text import METHODS, TextAttribution, TextClassifier
from captum_attnflow.visualization import html_page, terminal_text

_BATCH_SIZE = 16
_PROGRESS_AFTER_SECONDS = 2


def explain(
    texts: Annotated[
        list[str] | None, typer.Argument(help="Texts; none reads standard input.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            help="Read texts from a file, one per line; - reads standard input."
        ),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            help="Model folder or hub id; the model in the package by default.",
            show_default=False,
        ),
    ] = str(DEMO_MODEL_PATH),
    method: Annotated[
        str, typer.Option(help=f"One of: {', '.join(METHODS)}.")
    ] = "generalized-attention-flow",
    target: Annotated[
        str | None, typer.Option(help="Label or index; the predicted one by default.")
    ] = None,
    residual: Annotated[
        str | None,
        typer.Option(help="A fraction, free or none; by default the method's own."),
    ] = None,
    game: Annotated[
        str | None,
        typer.Option(help="joint or independent; by default the method's own."),
    ] = None,
    strategy: Annotated[
        str | None, typer.Option(help="eff or fidel; for slalom only.")
    ] = None,
    score: Annotated[
        str | None,
        typer.Option(help=f"One of: {', '.join(SCORES)}; for slalom only."),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write an HTML page.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per text.")
    ] = False,
) -> None:
    """Print the prediction for each text, and its tokens coloured by score."""
    given = {"game": game, "strategy": strategy, "score": score}
    options: dict[str, Any] = {k: v for k, v in given.items() if v is not None}
    if residual is not None:
        options["residual"] = _residual(residual)
    console = Console(highlight=False, soft_wrap=True)
    with errors_told():
        if html is not None and (html.is_dir() or not html.parent.is_dir()):
            raise FileNotFoundError(
                f"--html {html}: there is no folder {str(html.parent)!r} for such a "
                "file; give a file in an existing folder"
            )
        results = []
        for result in _explain(texts, file, model, method, target, options):
            results.append(result)
            if as_json:
                fields = asdict(result).items()
                print(json.dumps({k: v for k, v in fields if v is not None}))
            else:
                console.print(terminal_text(result))
        if html is not None:
            html.write_text(html_page(results), encoding="utf-8")


def _explain(
    texts: list[str] | None,
    file: Path | None,
    model: str,
    method: str,
    target: str | None,
    options: dict[str, Any],
) -> Iterator[TextAttribution]:
    lines = _read(texts, file)
    transformers_logging.disable_progress_bar()
    classifier = TextClassifier.load(model)
    bar = progress(
        range(0, len(lines), _BATCH_SIZE),
        desc="explaining",
        file=sys.stderr,
        delay=_PROGRESS_AFTER_SECONDS,
        disable=None,  # where standard error is no terminal
    )
    for start in bar:
        batch = lines[start : start + _BATCH_SIZE]
        yield from classifier.explain(batch, method, target, **options)


def _read(texts: list[str] | None, file: Path | None) -> list[str]:
    if texts and file:
        raise ValueError("texts were given both as arguments and by --file; give one")
    lines = texts or _lines(file)
    empty = [number for number, line in enumerate(lines, 1) if not line.strip()]
    if not lines or empty:
        where = f"text {empty[0]} of {len(lines)}" if empty else "the input"
        raise ValueError(f"{where} is empty; give one text per line, no blank lines")
    return lines


def _lines(file: Path | None) -> list[str]:
    """Lines of a file or of standard input, cut at line feeds only."""
    try:
        if file is None or str(file) == "-":
            content = sys.stdin.read()
        else:
            content = file.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file or 'standard input'} is not UTF-8: {error}") from error
    return [line.rstrip("\r") for line in content.removesuffix("\n").split("\n")]


def _residual(given: str) -> float | str | None:
    if given == "none":
        return None
    try:
        return float(given)
    except ValueError:
        return given
