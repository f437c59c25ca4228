"""``captum-attnflow explain``: attributions of texts and images.

What loads torch is imported when the command runs, not for its help text.
"""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from captum_attnflow._checks import check_choice, counted, which_of
from captum_attnflow._warnings import stopped_in_words
from captum_attnflow.cli import tables
from captum_attnflow.cli._streams import (
    check_written,
    errors_as_sentences,
    option_of,
    options_named,
    printing,
    read_lines,
    saying,
    words_console,
)
from captum_attnflow.pipelines.methods import DEFAULT_METHOD, METHODS, compile_for
from captum_attnflow.tables.settings import TASK_COLUMNS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from captum_attnflow.pipelines.image_classification import ImageAttribution

SCORES = ("value", "importance", "linearized", "contribution", "removal")
"""The keys of :data:`captum_attnflow.slalom.SCORES`, which would load torch."""
_GENERATED = ("text-generation", "image-text-generation")
_LABELLED = ("text-classification", "token-classification")
_OF_TASKS = {
    "against": ("text-classification", *_GENERATED),
    "truncation": _LABELLED,
    "stride": _LABELLED,
    "prompt": ("image-text-generation",),
    "max_new_tokens": _GENERATED,
    "output": _GENERATED,
    "spans": _GENERATED,
    "chat": _GENERATED,
    "system": _GENERATED,
    "units": _GENERATED,
    "left_out": _GENERATED,
    "scale": _GENERATED,
}
"""The tasks that an option of ``explain()`` is of; all others are of a method."""
_WRITTEN = {"output": "--explained", "spans": "--span"}
"""Options that the shell calls otherwise."""
_BATCH_SIZE = 16
# What pictures are named, whether or not they can be read.
_PICTURES = re.compile(
    r"\.(avif|bmp|gif|heic|jpe?g|png|svg|tiff?|webp)$", re.IGNORECASE
)


@dataclass(frozen=True)
class Task:
    """One kind of input and its results.

    Attributes:
        load (Callable): Loads by its name what has a method ``explain(batch, method,
            target, **options)``, which returns the results of a batch, which show
            themselves.
        unit (str): What one line of the input is.
        default_model (str, optional): Where none is given.
        fields (Callable): Makes one result a dictionary for JSON.
        save_picture (Callable, optional): Writes results to a picture file.
        reads_text (bool): Whether a line is a text; otherwise it is a file's name,
            which may be any bytes.
        default_name (str, optional): What people call the default model.
    """

    load: Callable[..., Any]
    unit: str
    default_model: str | None
    fields: Callable[[Any], dict[str, Any]]
    save_picture: Callable[[Sequence[Any], Path], None] | None = None
    reads_text: bool = True
    default_name: str | None = None


def _given_fields(result: Any) -> dict[str, Any]:
    found = {key: value for key, value in asdict(result).items() if value is not None}
    found.pop("index", None)  # a line of its own says which text it is
    return found


def _texts() -> Task:
    from captum_attnflow.demo import DEMO_MODEL_PATH
    from captum_attnflow.pipelines.text_classification import TextClassifier

    return Task(
        load=TextClassifier.load,
        unit="text",
        default_model=str(DEMO_MODEL_PATH),
        fields=_given_fields,
        default_name="the small sentiment classifier of this package",
    )


def _words() -> Task:
    from captum_attnflow.pipelines.token_classification import (
        LabelledWords,
        TokenClassifier,
    )

    def fields(result: LabelledWords) -> dict[str, Any]:
        explained = [_given_fields(each) for each in result.attributions]
        return {**_given_fields(result), "attributions": explained}

    return Task(
        load=TokenClassifier.load, unit="text", default_model=None, fields=fields
    )


def _generated_text() -> Task:
    from captum_attnflow.pipelines.text_generation import GeneratedText, TextGenerator

    return Task(
        load=TextGenerator.load,
        unit="prompt",
        default_model=None,
        fields=GeneratedText.to_dict,
    )


def _save_figure(figure: Figure, file: Path, bbox: str | None = None) -> None:
    from captum_attnflow._files import replace_file

    picture = io.BytesIO()
    figure.savefig(picture, format=file.suffix[1:].lower(), bbox_inches=bbox)
    replace_file(file, picture.getvalue())


def _images() -> Task:
    from captum_attnflow.pipelines.image_classification import (
        ImageClassifier,
        ImageOverlays,
    )

    def fields(result: ImageAttribution) -> dict[str, Any]:
        found = _given_fields(result)
        del found["pixels"]
        return found

    def save_picture(results: Sequence[ImageAttribution], file: Path) -> None:
        _save_figure(ImageOverlays(tuple(results)).figure(), file)

    return Task(
        load=ImageClassifier.load,
        unit="image file",
        default_model=None,
        fields=fields,
        save_picture=save_picture,
        reads_text=False,
    )


@dataclass(frozen=True)
class _OnePrompt:
    """Asks the same of every image."""

    generator: Any

    def explain(
        self,
        images: Sequence[str],
        method: str,
        target: str | None,
        *,
        prompt: str | None = None,
        **options: Any,
    ) -> list[Any]:
        if prompt is None:
            raise ValueError(
                "no prompt was given for the images; give --prompt with what is asked "
                "of each, and --chat for the model's chat template"
            )
        prompts = [prompt] * len(images)
        explained: list[Any] = self.generator.explain(
            images, prompts, method, target, **options
        )
        return explained


def _generated_from_images() -> Task:
    from captum_attnflow.pipelines.image_text_generation import (
        GeneratedFromImage,
        ImageTextGenerator,
    )

    def save_picture(results: Sequence[GeneratedFromImage], file: Path) -> None:
        if len(results) > 1:
            raise ValueError(
                f"{len(results)} images were given, and --output draws the overlays of "
                "one; give one image"
            )
        _save_figure(results[0].figure(), file, "tight")

    return Task(
        load=lambda *name, **place: _OnePrompt(ImageTextGenerator.load(*name, **place)),
        unit="image file",
        default_model=None,
        fields=GeneratedFromImage.to_dict,
        save_picture=save_picture,
        reads_text=False,
    )


TASKS: dict[str, Callable[[], Task]] = {
    "text-classification": _texts,
    "token-classification": _words,
    "text-generation": _generated_text,
    "image-text-generation": _generated_from_images,
    "image-classification": _images,
}


def explain(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(help="Texts, or image files; none reads standard input."),
    ] = None,
    task: Annotated[
        str,
        typer.Option(
            help=f"One of: {', '.join(TASKS)}; of a table (--data) one of: "
            f"{', '.join(TASK_COLUMNS)}."
        ),
    ] = "text-classification",
    file: Annotated[
        Path | None,
        typer.Option(
            help="Read inputs from a file, one per line; - reads standard input."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Model folder or hub id; for texts the model in the package by "
            "default.",
            show_default=False,
        ),
    ] = None,
    method: Annotated[
        str, typer.Option(help=f"One of: {', '.join(METHODS)}.")
    ] = DEFAULT_METHOD,
    target: Annotated[
        str | None,
        typer.Option(
            help="Label or index, or the text that follows a prompt; what the model "
            "predicts by default."
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="Why rather than this label; or, of generated text, than this text "
            "of as many tokens, or runner-up."
        ),
    ] = None,
    truncation: Annotated[
        str | None,
        typer.Option(
            help="Of texts longer than the model's limit: truncate (default), window, "
            "which reads all of them, or refuse."
        ),
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="Tokens in which windows overlap.")
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(help="What is asked of each image; for image-text-generation."),
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Most tokens to generate; for text-generation.")
    ] = None,
    explained: Annotated[
        str | None,
        typer.Option(
            help="What of a generated token: logit (default), log-probability or "
            "probability."
        ),
    ] = None,
    span: Annotated[
        list[str] | None,
        typer.Option(
            help="Explain a span of generated tokens as a whole: a text among them, or "
            "their numbers, 0:12; may be repeated."
        ),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Put the prompt into the chat template.")
    ] = False,
    system: Annotated[
        str | None, typer.Option(help="A system message; for a chat.")
    ] = None,
    units: Annotated[
        str | None,
        typer.Option(
            help="Sum scores over each word (default), sentence, line or token."
        ),
    ] = None,
    left_out: Annotated[
        list[str] | None,
        typer.Option(
            help="Do not show the first token, the one a row is read-out at, or a "
            "chat's system or template; may be repeated."
        ),
    ] = None,
    scale: Annotated[
        str | None,
        typer.Option(help="Colours relative to a row (default) or the matrix."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Where the model runs, such as cuda.")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="Of the weights; float32 by default, or bfloat16."),
    ] = None,
    device_map: Annotated[
        str | None, typer.Option(help="Split the model over devices, such as auto.")
    ] = None,
    rules: Annotated[
        str | None,
        typer.Option(
            help="attnlrp or cp-lrp, for relevance-flow also gradient; for "
            "relevance-flow and attnlrp only."
        ),
    ] = None,
    gradient: Annotated[
        str | None,
        typer.Option(
            help="gradient, attnlrp or cp-lrp; for generalized-attention-flow only."
        ),
    ] = None,
    residual: Annotated[
        str | None,
        typer.Option(help="A fraction, free or none; by default the method's own."),
    ] = None,
    game: Annotated[
        str | None,
        typer.Option(help="joint or independent; by default the method's own."),
    ] = None,
    normalization: Annotated[
        str | None, typer.Option(help="receptive-field; for decoders only.")
    ] = None,
    strategy: Annotated[
        str | None, typer.Option(help="eff or fidel; for slalom only.")
    ] = None,
    score: Annotated[
        str | None,
        typer.Option(help=f"One of: {', '.join(SCORES)}; for slalom only."),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            help="Write an HTML page; of generated text one to choose tokens on."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Write a picture, such as a .png; for images.")
    ] = None,
    pieces: Annotated[
        bool,
        typer.Option("--pieces", help="Print the model's tokens in place of words."),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per result.")
    ] = False,
    data: tables.Data = None,
    text_column: tables.TextColumn = None,
    pair_column: tables.PairColumn = None,
    id_column: tables.IdColumn = None,
    columns: tables.Columns = None,
    format: tables.Format = None,  # noqa: A002 - the option's name
    input_format: tables.InputFormat = None,
    part: tables.Part = None,
    limit: tables.Limit = None,
    shuffle_seed: tables.ShuffleSeed = None,
    split: tables.Split = None,
    subset: tables.Subset = None,
    rows_per_part: tables.RowsPerPart = None,
    batch_size: tables.BatchSize = None,
    engine: tables.Engine = None,
    workers: tables.Workers = None,
    gpus_per_worker: tables.GpusPerWorker = None,
) -> None:
    """Print the prediction for each input, and its parts coloured by score."""
    given = {
        "rules": rules,
        "gradient": gradient,
        "game": game,
        "normalization": normalization,
        "strategy": strategy,
        "score": score,
        "against": against,
        "truncation": truncation,
        "stride": stride,
        "prompt": prompt,
        "max_new_tokens": max_new_tokens,
        "output": explained,
        "spans": None if span is None else [_span(given) for given in span],
        "chat": chat or None,
        "system": system,
        "units": units,
        "left_out": left_out,
        "scale": scale,
    }
    given_place = {"device": device, "dtype": dtype, "device_map": device_map}
    place = {k: v for k, v in given_place.items() if v is not None}
    options: dict[str, Any] = {k: v for k, v in given.items() if v is not None}
    if residual is not None:
        options["residual"] = _residual(residual)
    of_tables: dict[str, Any] = {
        "text_column": text_column,
        "pair_column": pair_column,
        "id_column": id_column,
        "columns": columns,
        "format": format,
        "input_format": input_format,
        "part": part,
        "limit": limit,
        "shuffle_seed": shuffle_seed,
        "split": split,
        "subset": subset,
        "rows_per_part": rows_per_part,
        "batch_size": batch_size,
        "engine": engine,
        "workers": workers,
        "gpus_per_worker": gpus_per_worker,
    }
    with errors_as_sentences():
        if data is None and task in TASK_COLUMNS and task not in TASKS:
            raise ValueError(
                f"--task {task} explains tables; give --data FILE and --output FOLDER"
            )
        check_choice("task", task, TASKS if data is None else TASK_COLUMNS)
        if data is not None:
            unused: dict[str, object] = {
                "a text": inputs,
                "--file": file,
                "--html": html,
                "--json": as_json,
            }
            chosen_by = {
                "task": task,
                "model": model,
                "method": method,
                "target": target,
                "against": options.pop("against", None),
                "truncation": options.pop("truncation", None),
                **place,
            }
            tables.explain_data(
                data, output, unused, options=options, **chosen_by, **of_tables
            )
            return
        _refuse_of_other_tasks(task, options)
        if task in _GENERATED and not pieces:
            options.setdefault("units", "word")
        tables.refuse_without_data(of_tables)
        tables.refuse_table_as_lines(file)
        with saying("loading PyTorch"):
            chosen = TASKS[task]()
        check_written("--html", html)
        check_written("--output", output)
        if output is not None and chosen.save_picture is None:
            raise ValueError(f"{task} has no picture for --output; give --html")
        _check_picture(output)
        lines = _read(inputs, file, chosen)
        results: list[Any] = []

        def how_far() -> str:
            return (
                f"stopped with {counted(len(results), 'result')} printed, of "
                f"{counted(len(lines), chosen.unit)}; the same command begins anew"
            )

        named = options_named(["method", "target", *place, *options], _WRITTEN)
        with named, stopped_in_words(how_far):
            explainer = _load(chosen, model, place)
            if len(lines) > 1:  # Or the last digits would change between them.
                compile_for(method, options, show_progress=True)
            for result in _explain(lines, explainer, method, target, options):
                results.append(result)
                with printing():
                    if as_json:
                        print(json.dumps(chosen.fields(result)))
                    else:
                        words_console().print(_shown(result, pieces))
        if html is not None:
            from captum_attnflow.show import save_html

            save_html(results, html, model or chosen.default_name)
        if output is not None and chosen.save_picture is not None:
            chosen.save_picture(results, output)


def _refuse_of_other_tasks(task: str, options: Mapping[str, Any]) -> None:
    for name in options:
        tasks = _OF_TASKS.get(name, (task,))
        if task not in tasks:
            raise ValueError(
                f"{option_of(name, _WRITTEN)} was given with --task {task}, and is of "
                f"{' and '.join(tasks)}; leave it out, or give --task {tasks[0]}"
            )


def _check_picture(file: Path | None) -> None:
    if file is None:
        return
    from matplotlib.backend_bases import FigureCanvasBase

    formats = FigureCanvasBase.get_supported_filetypes()
    if file.suffix[1:].lower() not in formats:
        raise ValueError(
            f"--output {file} ends in no format of a picture; give a file that ends "
            f"in one of {', '.join(f'.{name}' for name in formats)}"
        )


def _load(task: Task, model: str | None, place: dict[str, str]) -> Any:
    name = task.default_model if model is None else model
    if name is None:
        raise ValueError(
            "the package holds no model for this task; give --model with a folder or "
            f"a hub id of one that reads each {task.unit}"
        )
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    with saying(f"loading the model {name}"):
        return task.load(name, **place)


def _shown(result: Any, pieces: bool) -> Any:
    if not pieces:
        return result
    from captum_attnflow.show import terminal_text

    return terminal_text(result, by="token")


def _explain(
    lines: list[str],
    explainer: Any,
    method: str,
    target: str | None,
    options: dict[str, Any],
) -> Iterator[Any]:
    for start in range(0, len(lines), _BATCH_SIZE):
        batch = lines[start : start + _BATCH_SIZE]
        which = f"{start + 1} to {start + len(batch)} of {len(lines)}"
        with saying(f"explaining {which} by {method}"):
            results = explainer.explain(batch, method, target, **options)
        yield from results


def _read(inputs: list[str] | None, file: Path | None, task: Task) -> list[str]:
    unit = task.unit
    if task.reads_text:
        _refuse_pictures(inputs or ([] if file is None else [str(file)]))
    if inputs and file:
        raise ValueError(
            f"{unit}s were given both as arguments and by --file; give one"
        )
    lines = inputs or read_lines(file)
    empty = [number for number, line in enumerate(lines, 1) if not line.strip()]
    if not lines or empty:
        where = which_of(unit, empty[0], len(lines)) if empty else "the input"
        raise ValueError(
            f"{where} is empty; give {unit}s as arguments, or one per line of a file "
            "or of standard input, without blank lines"
        )
    if task.reads_text:
        _warn_of_names(inputs or [])
        from captum_attnflow.pipelines.pretrained import check_encodable

        for number, line in enumerate(lines, 1):
            check_encodable(which_of(unit, number, len(lines)), line)
    return lines


def _refuse_pictures(given: list[str]) -> None:
    for name in given:
        if _PICTURES.search(name) and _is_file(name):
            raise ValueError(
                f"{name} is an image, and this task reads texts; give --task "
                "image-classification and --model with the folder or hub id of a "
                "vision transformer"
            )


def _warn_of_names(given: list[str]) -> None:
    """Say so where the name of a file is explained, and hardly meant as a text."""
    for name in given:
        if Path(name).suffix and _is_file(name):
            print(
                f"warning: {name!r} is the name of a file, and is explained as a text; "
                f"--file {name} explains each of its lines",
                file=sys.stderr,
            )


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except OSError:  # too long for the name of a file, for one
        return False


def _span(given: str) -> str | tuple[int, int]:
    """Read numbers of tokens, 0:12, or else a text."""
    numbers = re.fullmatch(r"(\d+):(\d+)", given)
    return (int(numbers[1]), int(numbers[2])) if numbers else given


def _residual(given: str) -> float | str | None:
    if given == "none":
        return None
    try:
        return float(given)
    except ValueError:
        return given
