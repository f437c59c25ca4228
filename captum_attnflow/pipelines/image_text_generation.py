"""An image and a prompt in, attributions of generated text out.

Tokens of the image are players beside those of the text: the vision tower runs without
gradients, and what it puts out stands among the decoder's embeddings.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike, fspath
from textwrap import shorten
from typing import Any, cast

import torch
from matplotlib.figure import Figure
from PIL import Image
from rich.text import Text
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedModel,
    ProcessorMixin,
)

from captum_attnflow._checks import counted, type_of, which_of
from captum_attnflow.attr import GenerationAttribution
from captum_attnflow.attr.generation import Output, check_length
from captum_attnflow.explanation import Part
from captum_attnflow.long_form import ScoredRows, Tokens
from captum_attnflow.pipelines.image_chat import (
    image_chat,
    image_places,
    parts_of_chat,
)
from captum_attnflow.pipelines.image_classification import open_image
from captum_attnflow.pipelines.image_tokens import MergedInput, find_image_tokens
from captum_attnflow.pipelines.methods import (
    DEFAULT_METHOD,
    GENERATION_METHODS,
    find_method,
)
from captum_attnflow.pipelines.pretrained import (
    NOT_GIVEN,
    Kind,
    check_encodable,
    check_parts,
    check_texts,
)
from captum_attnflow.pipelines.provenance import KnownParts
from captum_attnflow.pipelines.text_generation import (
    GeneratedText,
    Span,
    as_tuple,
    check_max_new_tokens,
    decoded,
    find_spans,
    padding_token,
)
from captum_attnflow.scored_tokens import escaped, printable
from captum_attnflow.show.figures import drawable, shortened
from captum_attnflow.show.generated import names_left_out, readable, where_left_out
from captum_attnflow.show.image import (
    Box,
    image_overlay,
    shaded_boxes,
    spread_over_boxes,
)
from captum_attnflow.show.token_matrix import LeftOut, Scale
from captum_attnflow.texts import EmbeddedInput
from captum_attnflow.texts.units import Unit

_MOST_OVERLAYS = 11  # in a notebook, beside the image itself
_PANELS_IN_A_ROW = 4
_PANEL = (3.2, 3.6)  # inches
_TITLE_CELLS = 28


@dataclass(frozen=True, eq=False)
class GeneratedFromImage(GeneratedText):
    """The attribution of text that was generated from an image and a prompt.

    A notebook shows overlays of the image above the matrix of the text, in which the
    image is one column. Rich prints the whole answer's scores as a grid of patches.

    Attributes:
        prompt (str): See :class:`GeneratedText`, like what stands there; the image is
            its placeholder in it.
        image (str): The image's file.
        boxes (tuple of Box): Left, top, right and bottom of each image token in pixels
            of the image that the model sees. None where the tokens are no plain grid.
        layout (str): What the image tokens stand for, in words; or why they have no
            boxes.
        pixels (Tensor, optional): Shape ``(C, H, W)``, in [0, 1], the image as the
            model sees it: resized and cropped, but not normalised.
    """

    image: str = ""
    boxes: tuple[Box, ...] = ()
    layout: str = ""
    pixels: Tensor | None = field(default=None, repr=False)

    @property
    def image_scores(self) -> Tensor:
        """The scores of the image's tokens, shape ``(R, image tokens)``."""
        return self.explanation.scores[:, self._is_image]

    @property
    def image_shares(self) -> Tensor:
        """The image's share in the sum of a row's absolute scores.

        As in the matrix, what is ``left_out`` does not count, in each row.

        Returns:
            Tensor: Shape ``(R,)``, in [0, 1]; 0 where all scores are.
        """
        absolute = self._shown_scores.abs()
        total = absolute.sum(1)
        return absolute[:, self._is_image].sum(1) / total.where(total > 0, 1)

    @property
    def shares(self) -> str:
        """The shares of image and text in the sum of all absolute scores, in words.

        A chat's template has a share of its own. What is ``left_out`` does not count,
        and is named.
        """
        names = names_left_out(self.left_out)
        left_out = [f"left out: {', '.join(names)}"] if names else []
        sums = {"image": 0.0, "text": 0.0}
        parts = self.explanation.parts
        if "template" in parts and "template" not in names:
            sums["template"] = 0.0
        of_tokens = self._shown_scores.abs().sum(0).tolist()
        for part, score in zip(parts, of_tokens, strict=True):
            sums[part if part in sums else "text"] += score
        total = sum(sums.values())
        if total == 0:
            return "; ".join(["all scores are 0", *left_out])
        image, *others = (
            f"{name} {100 * score / total:.3g} %" for name, score in sums.items()
        )
        shares = [f"{image} of {'what is shown' if left_out else 'the total'}", *others]
        return f"{', '.join(shares)} ({'; '.join(['absolute scores', *left_out])})"

    @property
    def attributions(self) -> Tensor:
        """Every pixel's equal share of its token's score.

        Returns:
            Tensor: Shape ``(R, C, H, W)``.

        Raises:
            ValueError: If the tokens have no boxes in the image.
        """
        return torch.stack([self._spread(scores) for scores in self.image_scores])

    def figure(self, rows: Sequence[int] | None = None) -> Figure:
        """Draw the image, and overlays of it: for generated tokens or spans.

        What is ``left_out`` has neither colour nor share.

        Args:
            rows (sequence of int, optional): Which rows of the explanation; all by
                default. Where they are the tokens of one answer, the whole answer comes
                first.

        Returns:
            Figure: Of the image alone where its tokens have no boxes.

        Raises:
            ValueError: If there is no such row, or no single picture that the model
                sees.
        """
        return self._drawn(self._overlays(rows))

    def to_dict(self) -> dict[str, Any]:
        """Return texts, tokens, scores and boxes, ready for JSON.

        Scores are all there; ``left_out`` is what ``image_shares`` do not count.
        """
        return {
            "image": self.image,
            **super().to_dict(),
            "image_shares": self.image_shares.tolist(),
            "left_out": list(names_left_out(self.left_out)),
            "boxes": [list(box) for box in self.boxes],
            "layout": self.layout,
        }

    @property
    def _is_image(self) -> Tensor:
        parts = self.explanation.parts
        marks = [part == "image" for part in parts]
        return torch.tensor(marks, device=self.explanation.scores.device)

    @property
    def _shown_scores(self) -> Tensor:
        """All scores, 0 where they are left out."""
        hidden = where_left_out(self.explanation, self.left_out)
        return self.explanation.scores.masked_fill(hidden, 0)

    @property
    def _has_whole_answer(self) -> bool:
        explanation = self.explanation
        return len(explanation.scores) == len(explanation.log_probabilities) > 1

    def _spread(self, scores: Tensor) -> Tensor:
        if self.pixels is None or not self.boxes:
            raise ValueError(
                f"the scores cannot be laid over the image: {self.layout}; take "
                "image_shares"
            )
        pixels = self.pixels.double()
        return spread_over_boxes(scores.tolist(), self.boxes, pixels)

    def _drawn(self, overlays: Mapping[str, Tensor]) -> Figure:
        """Draw the image, and overlays of scores of its tokens by their titles."""
        if self.pixels is None:
            raise ValueError(
                f"there is no picture to draw on: {self.layout}; take image_shares"
            )
        n_columns = min(1 + len(overlays), _PANELS_IN_A_ROW)
        n_rows = -(-(1 + len(overlays)) // n_columns)
        width, height = _PANEL
        figure = Figure(figsize=(width * n_columns, height * n_rows))
        panels = figure.subplots(
            n_rows, n_columns, squeeze=False, gridspec_kw={"hspace": 0.4}
        ).ravel()
        for axes in panels:
            axes.set_axis_off()
        plain, *others = panels
        plain.imshow(self.pixels.permute(1, 2, 0).expand(-1, -1, 3).numpy())
        for axes, (title, scores) in zip(others, overlays.items(), strict=False):
            image_overlay(
                self._spread(scores)[None],
                self.pixels[None],
                plt_fig_axis=(figure, axes),
            )
            drawn, families = drawable(shortened(title, _TITLE_CELLS))
            axes.set_title(drawn, family=families, parse_math=False)
        return figure

    def _overlays(self, rows: Sequence[int] | None) -> dict[str, Tensor]:
        """Return the image's scores of the whole answer and of rows, by titles."""
        shown = self._shown_scores[:, self._is_image]
        n_rows = len(shown)
        wanted = range(n_rows) if rows is None else rows
        for row in wanted:
            if not isinstance(row, int) or not 0 <= row < n_rows:
                raise ValueError(
                    f"rows holds {row!r}; give numbers from 0 to {n_rows - 1}"
                )
        if not self.boxes:
            return {}
        found = {}
        if rows is None and self._has_whole_answer:
            found["whole answer"] = shown.sum(0)
        texts, shares = self.explanation.row_texts, self.image_shares.tolist()
        for row in wanted:
            share = f"image {100 * shares[row]:.2g} %"
            found[f"{row}: {readable(texts[row])} ({share})"] = shown[row]
        return found

    def _scored_rows(self, first: int, tokens: Tokens | None) -> Iterator[ScoredRows]:
        for rows in super()._scored_rows(first, tokens):
            yield replace(rows, same={**rows.same, "image": self.image})

    def _repr_html_(self) -> str:
        said = [f"{self.image}: {self.shares}", self.layout]
        picture = ""
        if self.pixels is not None:
            overlays = [*self._overlays(None).items()]
            shown = overlays[:_MOST_OVERLAYS]
            if len(shown) < len(overlays):
                said.append(
                    f"the first {len(shown)} of {len(overlays)} overlays; figure(rows) "
                    "draws others"
                )
            stored = io.BytesIO()
            self._drawn(dict(shown)).savefig(
                stored, format="png", bbox_inches="tight", dpi=80
            )
            data = base64.b64encode(stored.getvalue()).decode("ascii")
            alternative = escaped("; ".join(said))
            picture = f'<img alt="{alternative}" src="data:image/png;base64,{data}">'
        caption = "<br>".join(map(escaped, said))
        return (
            f"<figure>{picture}<figcaption>{caption}</figcaption></figure>"
            f"{self.matrix()._repr_html_()}"
        )

    def __rich__(self) -> Text:
        text = Text.assemble(
            f"{printable(self.image)}: ",
            (self.shares, "bold"),
            "\n",
            super().__rich__(),
        )
        if self.boxes:
            scores = self._shown_scores[:, self._is_image].sum(0).tolist()
            text.append("\nimage, all rows summed:\n")
            text.append(shaded_boxes(scores, self.boxes))
        return text.append(f"\n{printable(self.layout)}")


@dataclass(frozen=True)
class ImageTextGenerator(KnownParts):
    """A vision-language model, whose decoder reads an image's tokens among the text's.

    Attributes:
        model (PreTrainedModel): With a vision tower, a causal decoder and a language
            modelling head, in eval mode, such as LLaVA, Qwen2-VL or Gemma 3.
        processor (ProcessorMixin): The model's processor: image processor and
            tokenizer.
    """

    model: PreTrainedModel
    processor: ProcessorMixin = NOT_GIVEN
    _kind = Kind(
        "a vision-language model",
        AutoModelForImageTextToText,
        AutoProcessor.from_pretrained,
        "the files of its processor",
    )

    def __post_init__(self) -> None:
        check_parts("ImageTextGenerator", self.model, self.processor, "processor")
        for name in ("tokenizer", "image_processor"):
            if not hasattr(self.processor, name):
                raise ValueError(
                    f"processor is {type_of(self.processor)} without "
                    f"{name}; give the processor of a vision-language model, such as "
                    "AutoProcessor.from_pretrained(folder) finds"
                )
        if self.model.config.is_encoder_decoder:
            raise ValueError(
                f"{type(self.model).__name__} is an encoder-decoder; give a model "
                "whose decoder reads image and text as one sequence, such as LLaVA"
            )

    def explain(
        self,
        images: Sequence[str],
        prompts: Sequence[str],
        method: str = DEFAULT_METHOD,
        target: str | None = None,
        max_new_tokens: int = 25,
        *,
        output: Output = "logit",
        against: str | int | None = None,
        spans: Sequence[Span] | None = None,
        chat: bool = False,
        system: str | None = None,
        units: Unit | Sequence[tuple[int, int]] = "token",
        left_out: LeftOut | Collection[LeftOut] = (),
        scale: Scale = "row",
        **options: Any,
    ) -> list[GeneratedFromImage]:
        """Continue prompts that show an image, and attribute every generated token.

        What explains the answer is the decoder: its tokens are those of the text and of
        the image. The model's own pass makes their embeddings and positions.

        Args:
            images (sequence of str): The images' files, as :class:`ImageClassifier`
                reads them.
            prompts (sequence of str): One per image, with the processor's
                ``image_token`` where the image goes.
            method (str): See :meth:`TextGenerator.explain`, like what follows.
            target (str, optional): The text to attribute.
            max_new_tokens (int): Most tokens to generate.
            output (str): What of a generated token is explained.
            against (str or int, optional): Why rather than this.
            spans (sequence, optional): Explain these spans of the generated text.
            chat (bool): Put the image, and the prompt behind it, as the user's message
                into the chat template of the processor. The prompt then has no
                placeholder of its own.
            system (str, optional): A system message in front, of a chat.
            units (str or sequence of (int, int)): What the matrix shows scores of.
            left_out (sequence of str): What it does not show.
            scale (str): What its colours are relative to.
            **options: Options of the method, such as ``residual``.

        Returns:
            list[GeneratedFromImage]: One per image.

        Raises:
            FileNotFoundError: If an image is not there.
            ValueError: If images and prompts are not as many, a prompt has no place for
                the image or two, what the model's decoder reads is not supported, or
                for what :meth:`TextGenerator.explain` refuses.
        """
        is_chat, hidden = chat or system is not None, names_left_out(left_out)
        self._check(images, prompts, is_chat)
        if target is not None:
            check_encodable("target", target)
        check_max_new_tokens(max_new_tokens)
        tokenizer = self._tokenizer
        attribution = GenerationAttribution(
            find_method(method, options, GENERATION_METHODS)(self.model, **options),
            tokenizer,
            output,
        )
        results = []
        for image, prompt in zip(images, prompts, strict=True):
            processed = self._read(open_image(image), prompt, is_chat, system)
            parts = self._parts(processed["input_ids"])
            if is_chat:
                ids = processed["input_ids"]
                parts = parts_of_chat(self.processor, ids, parts, prompt, system)
            generated = self._continue(processed, target, max_new_tokens)
            self._check_answer(generated)
            given = MergedInput(self.model, processed, len(generated))
            explanation = attribution.explain(
                EmbeddedInput(processed["input_ids"], tokenizer, given.embed, parts),
                generated,
                against=against,
                spans=None
                if spans is None
                else find_spans(spans, generated, tokenizer),
            )
            given.check_agreement(explanation, generated)
            tokens = find_image_tokens(
                self.model.config,
                self._image_processor,
                processed,
                parts.count("image"),
            )
            results.append(
                GeneratedFromImage(
                    prompt=prompt,
                    generated=decoded(generated, tokenizer),
                    explanation=explanation,
                    method=method,
                    units=units if isinstance(units, str) else as_tuple("units", units),
                    left_out=hidden,
                    scale=scale,
                    image=fspath(image),
                    boxes=tokens.boxes,
                    layout=tokens.layout,
                    pixels=tokens.pixels,
                )
            )
            results[-1].matrix()  # refuses what cannot be shown, before more is run
        return results

    # Not named tokenizer: where a pipeline comes from is hashed by the name of a part.
    @property
    def _tokenizer(self) -> Any:
        return cast("Any", self.processor).tokenizer

    @property
    def _image_processor(self) -> Any:
        return cast("Any", self.processor).image_processor

    @property
    def _image_token_id(self) -> int | None:
        config: Any = self.model.config
        found: int | None = getattr(config, "image_token_id", None)
        return found

    def _check(
        self, images: Sequence[str], prompts: Sequence[str], is_chat: bool
    ) -> None:
        """Refuse what is no list of images with a prompt each."""
        if isinstance(images, (str, bytes, PathLike)) or not isinstance(
            images, Sequence
        ):
            raise ValueError(f"images={images!r}; give a list of files")
        check_texts("prompt", prompts)
        if len(images) != len(prompts):
            raise ValueError(
                f"{len(images)} images and {len(prompts)} prompts were given; give a "
                "prompt for each image"
            )
        places = image_places(self.processor)
        named = " or ".join(map(repr, places))
        for number, prompt in enumerate(prompts, 1):
            n_places = sum(map(prompt.count, places)) if places else int(not is_chat)
            if n_places != int(not is_chat):
                found = counted(n_places, "place") if n_places else "no place"
                raise ValueError(
                    f"{which_of('prompt', number, len(prompts))}, "
                    f"{shorten(prompt, 40)!r}, has {found} for an image; "
                    + (
                        f"leave {named} out, as the chat template places the image"
                        if is_chat
                        else f"write {named} once, where the image goes, or pass "
                        "chat=True for the model's chat template"
                    )
                )

    def _check_answer(self, generated: Tensor) -> None:
        """Refuse an answer in which the model would place the image again."""
        place = self._image_token_id
        places = [] if place is None else generated.eq(place).nonzero()[:, 0].tolist()
        if places:
            raise ValueError(
                f"of the generated tokens {places} are the image's placeholder, "
                "which stands for no text; give a target "
                "without it, or a smaller max_new_tokens"
            )

    def _read(
        self, picture: Image.Image, prompt: str, is_chat: bool, system: str | None
    ) -> dict[str, Tensor]:
        """Make what the model takes of image and prompt."""
        processor: Any = self.processor
        if not is_chat:
            made = processor(images=picture, text=prompt, return_tensors="pt")
        elif not getattr(processor, "chat_template", None):
            named = " or ".join(image_places(processor))
            raise ValueError(
                f"the processor has no chat template; give prompts with {named} where "
                "the image goes, without chat and system"
            )
        else:
            made = processor.apply_chat_template(
                image_chat({"type": "image", "image": picture}, prompt, system),
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            )
        device, dtype = self.model.device, self.model.dtype
        return {
            name: value.to(device, dtype if value.is_floating_point() else None)
            for name, value in made.items()
            if isinstance(value, Tensor)
        }

    def _parts(self, ids: Tensor) -> list[Part]:
        """Tell the image's tokens from those of the text."""
        place = self._image_token_id
        listed = ids[0].tolist()
        parts: list[Part] = ["image" if i == place else "prompt" for i in listed]
        if "image" not in parts:
            raise ValueError(
                f"no token of the prompt is the image's: config.image_token_id of "
                f"{type(self.model).__name__} is {place}, and the processor made "
                f"{len(listed)} others; give the model's own processor"
            )
        return parts

    def _continue(
        self, processed: dict[str, Tensor], target: str | None, max_new_tokens: int
    ) -> Tensor:
        """Return the ids of the target, or of what the model generates."""
        config = self.model.config.get_text_config()
        n_prompt = processed["input_ids"].shape[1]
        if target is not None:
            ids = self._tokenizer.encode(target, add_special_tokens=False)
            check_length(config, n_prompt, len(ids))
            return torch.tensor(ids, device=self.model.device)
        check_length(config, n_prompt, max_new_tokens)
        answer = cast("Any", self.model).generate(
            **processed,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=padding_token(self._tokenizer),
        )
        generated: Tensor = answer[0, n_prompt:]
        return generated
