"""From texts to a model's arguments, by a policy for those that are too long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from textwrap import shorten
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, get_args

import torch
from torch import Tensor
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

from captum_attnflow._checks import (
    OneTextError,
    check_choice,
    check_integer,
    check_type,
    is_pipeline,
    which_of,
)
from captum_attnflow._warnings import warn_caller
from captum_attnflow.pipelines.pretrained import (
    NOT_GIVEN,
    Given,
    TextOrPair,
    check_ids,
    check_parts,
)
from captum_attnflow.pipelines.provenance import KnownParts
from captum_attnflow.texts.units import Word, words_of_text

if TYPE_CHECKING:
    from transformers import Pipeline

Truncation = Literal["truncate", "window", "refuse"]
_Model = TypeVar("_Model", bound="ModelOfTexts")
TRUNCATIONS: tuple[Truncation, ...] = get_args(Truncation)
# Of a tokenizer's call, what changes the tokens of a text, and is kept. Padding and the
# kind of arrays are chosen here, and change nothing at the tokens that are no padding.
_KEPT = ("add_special_tokens", "max_length", "truncation")
_CHOSEN_HERE = ("padding", "pad_to_multiple_of", "padding_side", "return_tensors")


@dataclass(frozen=True, eq=False)
class Windowed:
    """Which of the texts is cut into windows, and by how many tokens these overlap.

    Attributes:
        stride (int, optional): Tokens that a window shares with the one before, as
            transformers counts; a quarter of what a window holds of the text by
            default.
        side (str): ``"longer"`` of a pair is cut, or the ``"second"``. The other
            stands in every window.
    """

    stride: int | None = None
    side: Literal["longer", "second"] = "longer"


@dataclass(frozen=True)
class TokenPlaces:
    """Where the tokens of one text come from.

    Attributes:
        sequences (tuple of int): Of each token 0, or 1 in the second text of a pair;
            None for a special token.
        words (tuple of int): The word of its text that each token belongs to; None for
            a special token.
        spans (tuple of tuple[int, int]): The characters of its text that it spells.
    """

    sequences: tuple[int | None, ...]
    words: tuple[int | None, ...]
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class EncodedTexts:
    """Texts as arguments of a model: a row per text, or per window of a long one.

    Attributes:
        ids (Tensor): Shape ``(N, T)``, int64.
        others (dict): What else the tokenizer makes, by name, ``(N, T)`` each;
            ``attention_mask`` is among it.
        texts (tuple of int): The text of each row.
        positions (tuple of Tensor): Per row, where in the text each of its tokens
            stands, shape ``(tokens,)``, without padding.
        tokens (tuple): Per text, the tokens that its rows show together.
        n_truncated (tuple of int): Per text, the tokens that no row shows.
        places (tuple of TokenPlaces): Per text, where its tokens come from; empty if it
            was not asked for.
        words (tuple): Per text, the words that its tokens spell, as their writer did;
            None where places were not asked for.
    """

    ids: Tensor
    others: dict[str, Tensor]
    texts: tuple[int, ...]
    positions: tuple[Tensor, ...]
    tokens: tuple[tuple[str, ...], ...]
    n_truncated: tuple[int, ...]
    places: tuple[TokenPlaces, ...] = ()
    words: tuple[tuple[Word, ...] | None, ...] = ()

    @property
    def mask(self) -> Tensor:
        """Shape ``(N, T)``, bool, ``True`` at tokens and ``False`` at padding."""
        return self.others["attention_mask"].bool()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the arguments behind the ids."""
        return tuple(self.others)

    @property
    def arguments(self) -> tuple[Tensor, ...]:
        """The ids, and the arguments behind them."""
        return (self.ids, *self.others.values())

    @cached_property
    def _rows(self) -> dict[int, list[int]]:
        rows: dict[int, list[int]] = {}
        for row, text in enumerate(self.texts):
            rows.setdefault(text, []).append(row)
        return rows

    def rows_of(self, text: int) -> list[int]:
        """The rows of a text."""
        return self._rows[text]

    def column_of(self, row: int, position: int) -> int | None:
        """Where a row shows a token of its text, None where it does not."""
        found = (self.positions[row] == position).nonzero()
        if not len(found):
            return None
        return int(self.mask[row].nonzero()[int(found[0, 0]), 0])


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """A tokenizer, with what its model admits.

    Attributes:
        model (PreTrainedModel): What the arguments are for.
        tokenizer (PreTrainedTokenizerBase): Its tokenizer.
        options (mapping): Of the tokenizer's call: ``add_special_tokens``,
            ``max_length`` and ``truncation``, as a pipeline gives them.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    options: Mapping[str, Any]

    def encode(
        self,
        texts: Sequence[TextOrPair],
        truncation: Truncation = "truncate",
        windowed: Windowed | None = None,
        with_places: bool = False,
    ) -> EncodedTexts:
        """Encode texts, each in one row or in windows.

        Args:
            texts (sequence of str or tuple): Texts, and pairs of them.
            truncation (str): What becomes of a text longer than the limit:
                ``"truncate"`` cuts its end off, with a warning; ``"window"`` makes
                overlapping windows; ``"refuse"`` raises.
            windowed (Windowed, optional): The windows; its ``side`` is also what is
                truncated of a pair.
            with_places (bool): Whether to find where tokens come from.

        Raises:
            ValueError: If a text is refused, has no token but special ones or cannot be
                cut into such windows, ``truncation`` is unknown, or the tokenizer knows
                no places.
        """
        if with_places and not self.tokenizer.is_fast:
            raise ValueError(
                f"the tokenizer {type(self.tokenizer).__name__} does not know which "
                "characters its tokens spell; give one with a tokenizer.json, which "
                "AutoTokenizer loads as a fast tokenizer"
            )
        check_choice("truncation", truncation, TRUNCATIONS)
        windows = windowed or Windowed()
        if windows.stride is not None:
            check_integer("stride", windows.stride, 0)
            if truncation != "window":
                raise ValueError(
                    f"stride={windows.stride} was given with truncation="
                    f'{truncation!r}; it is the overlap of truncation="window"'
                )
        whole = self._whole(texts, with_places)
        limit = self.limit
        kept: list[list[Tensor]] = []
        for number, (text, encoded) in enumerate(zip(texts, whole, strict=True), 1):
            where = which_of("text", number, len(texts))
            if all(encoded["special_tokens_mask"]):
                # A method that deletes tokens has none to delete; the scores of others
                # would be of special tokens alone.
                said = "has no token but special ones; remove it"
                raise OneTextError(
                    f"{where}, {_shortened(text)!r}, {said}", f"the text {said}"
                )
            n_tokens = len(encoded["input_ids"])
            if limit is None or n_tokens <= limit:
                kept.append([torch.arange(n_tokens)])
            elif truncation == "refuse":
                raise OneTextError(
                    f"{where}, {_shortened(text)!r}, has {n_tokens} tokens, and the "
                    f"model's limit is {limit}; shorten it, or give "
                    'truncation="window", which explains all of it in overlapping '
                    'windows, or "truncate"',
                    f"the {'pair' if isinstance(text, tuple) else 'text'} has more "
                    f"tokens than the model's limit of {limit}",
                )
            elif truncation == "window":
                kept.append(self._windows(text, encoded, limit, windows))
            else:
                warn_caller(
                    f"the text {_shortened(text)!r} has {n_tokens} tokens and is "
                    f"truncated to the model's limit of {limit}"
                )
                encoded.update(self._truncated(text, limit, windows.side, with_places))
                kept.append([torch.arange(len(encoded["input_ids"]))])
        return self._padded(texts, whole, kept, with_places)

    @property
    def limit(self) -> int | None:
        """Most tokens that tokenizer, position embeddings and options admit, if any."""
        limits = [self.tokenizer.model_max_length]
        for name, module in self.model.named_modules():
            if name.endswith("position_embeddings") and hasattr(module, "weight"):
                # RoBERTa counts positions from behind the padding index.
                unused = getattr(module, "padding_idx", None)
                limits.append(
                    len(module.weight) - (0 if unused is None else unused + 1)
                )
        if self.options.get("truncation") and self.options.get("max_length"):
            limits.append(self.options["max_length"])
        # Tokenizers without a limit say 1e30.
        return min((int(limit) for limit in limits if limit < 1e9), default=None)

    def _call(self, *parts: str | list[str], **options: Any) -> BatchEncoding:
        given = self.options.get("add_special_tokens")
        added = {} if given is None else {"add_special_tokens": given}
        called: BatchEncoding = self.tokenizer(
            *parts, return_attention_mask=True, verbose=False, **{**added, **options}
        )
        return called

    def _whole(
        self, texts: Sequence[TextOrPair], with_places: bool
    ) -> list[dict[str, Any]]:
        """Encode texts without a limit, and pairs, each kind in one call."""
        encoded: list[dict[str, Any]] = [{} for _ in texts]
        for kind in (str, tuple):
            rows = [row for row, text in enumerate(texts) if isinstance(text, kind)]
            if not rows:
                continue
            parts = [_parts(texts[row]) for row in rows]
            columns = [list(column) for column in zip(*parts, strict=True)]
            called = self._call(*columns, return_special_tokens_mask=True)
            for index, row in enumerate(rows):
                encoded[row] = {name: of[index] for name, of in called.items()}
                encoded[row]["n_whole"] = len(encoded[row]["input_ids"])
                if with_places:
                    encoded[row]["places"] = _places(called, index)
        return encoded

    def _truncated(
        self,
        text: TextOrPair,
        limit: int,
        side: Literal["longer", "second"],
        with_places: bool,
    ) -> dict[str, Any]:
        given = self.options.get("truncation")
        # A pipeline may name which of a pair is cut; True cuts the longer one.
        strategy = given if isinstance(given, str) else True
        if side == "second":
            strategy = "only_second"
        columns = [[part] for part in _parts(text)]
        called = self._call(*columns, truncation=strategy, max_length=limit)
        one = {name: column[0] for name, column in called.items()}
        return {**one, "places": _places(called, 0)} if with_places else one

    def _windows(
        self, text: TextOrPair, encoded: Mapping[str, Any], limit: int, given: Windowed
    ) -> list[Tensor]:
        """Positions of the text's tokens in each window."""
        special = torch.tensor(encoded["special_tokens_mask"]).bool()
        content = (~special).nonzero()[:, 0]
        cut = content
        if isinstance(text, tuple):
            n_first = len(self._call(text[0], add_special_tokens=False)["input_ids"])
            is_longer = n_first > len(content) - n_first
            cuts_first = given.side == "longer" and is_longer
            cut = content[:n_first] if cuts_first else content[n_first:]
        always = torch.ones(len(special), dtype=torch.bool)
        always[cut] = False
        room = limit - int(always.sum())
        stride = max(room, 0) // 4 if given.stride is None else given.stride
        if room < 1 or stride >= room:
            what = "stride" if room >= 1 else "the tokens that stand in every window"
            raise OneTextError(
                f"the text {_shortened(text)!r} is cut into windows of {limit} tokens, "
                f"{int(always.sum())} of which are the same in all (special tokens, "
                "and the other sentence of a pair), and "
                f"stride={stride} of the rest overlap: {what} must be fewer than "
                f"{room if room >= 1 else limit}. Give a smaller stride, or shorten "
                "the text",
                f"windows of {limit} tokens have too little room beside special tokens "
                "and the other sentence of a pair"
                + ("" if room < 1 else f", as stride={stride} of it overlap"),
            )
        starts = range(0, max(len(cut) - stride, 1), room - stride)
        windows = []
        for start in starts:
            shown = always.clone()
            shown[cut[start : start + room]] = True
            windows.append(shown.nonzero()[:, 0])
        return windows

    def _padded(
        self,
        given: Sequence[TextOrPair],
        encoded: Sequence[dict[str, Any]],
        kept: Sequence[Sequence[Tensor]],
        with_places: bool,
    ) -> EncodedTexts:
        texts = [text for text, windows in enumerate(kept) for _ in windows]
        positions = [window for windows in kept for window in windows]
        names = self.tokenizer.model_input_names
        rows = {
            name: [
                [encoded[text][name][place] for place in window.tolist()]
                for text, window in zip(texts, positions, strict=True)
            ]
            for name in encoded[0]
            if name in names or name in ("input_ids", "attention_mask")
        }
        if self.tokenizer.pad_token_id is None:
            raise ValueError(
                "the tokenizer has no padding token, which texts are made equally long "
                "by; set tokenizer.pad_token = tokenizer.eos_token and "
                "model.config.pad_token_id = tokenizer.pad_token_id, and save both for "
                "the command line"
            )
        padded = self.tokenizer.pad(
            rows, padding=True, return_attention_mask=True, return_tensors="pt"
        ).to(self.model.device)
        tensors: dict[str, Tensor] = dict(padded)
        check_ids(self.model, tensors["input_ids"])
        seen = [sorted({int(i) for window in each for i in window}) for each in kept]
        tokens = tuple(
            tuple(
                self.tokenizer.convert_ids_to_tokens(
                    [one["input_ids"][place] for place in places]
                )
            )
            for one, places in zip(encoded, seen, strict=True)
        )
        places = tuple(one["places"] for one in encoded) if with_places else ()
        return EncodedTexts(
            ids=tensors.pop("input_ids"),
            others=tensors,
            texts=tuple(texts),
            positions=tuple(positions),
            tokens=tokens,
            n_truncated=tuple(
                one["n_whole"] - len(places)
                for one, places in zip(encoded, seen, strict=True)
            ),
            places=places,
            words=tuple(
                words_of_text(
                    of_text,
                    _parts(text),
                    place.sequences,
                    place.spans,
                    self.tokenizer.unk_token,
                )
                for of_text, text, place in zip(tokens, given, places, strict=True)
            )
            if places
            else (None,) * len(tokens),
        )


def _parts(text: TextOrPair) -> tuple[str, ...]:
    return text if isinstance(text, tuple) else (text,)


def _places(called: BatchEncoding, index: int) -> TokenPlaces:
    return TokenPlaces(
        tuple(called.sequence_ids(index)),
        tuple(called.word_ids(index)),
        tuple(called[index].offsets),
    )


def _shortened(text: TextOrPair) -> str:
    return shorten(" | ".join(_parts(text)), 40)


def _tokenizer_options(given: object) -> dict[str, Any]:
    """Return the options by which a pipeline calls its tokenizer, which change tokens.

    Args:
        given (object): A pipeline; anything else has no options.

    Returns:
        dict[str, Any]: ``add_special_tokens``, ``max_length`` and ``truncation``, where
        the pipeline was made with them.

    Raises:
        ValueError: If the pipeline was made with others, which are not read here.
    """
    if not is_pipeline(given):
        return {}
    options: Mapping[str, Any] = cast("Pipeline", given)._preprocess_params
    # What a pipeline of token classification always has, and is not asked for.
    known = (*_KEPT, *_CHOSEN_HERE, "is_split_into_words")
    others = {k: v for k, v in options.items() if k not in known and v is not None}
    if options.get("is_split_into_words"):
        others["is_split_into_words"] = True
    if others:
        raise ValueError(
            f"the pipeline was made with {others}, which changes its tokens and is not "
            f"read here; make it with no other options of its tokenizer than "
            f"{', '.join(_KEPT)}. A text longer than the model's limit is explained in "
            'overlapping windows by explain(..., truncation="window", stride=...)'
        )
    return {name: options[name] for name in _KEPT if name in options}


@dataclass(frozen=True)
class ModelOfTexts(KnownParts):
    """A model with its tokenizer: what those share that explain texts.

    Attributes:
        model (PreTrainedModel): In eval mode.
        tokenizer (PreTrainedTokenizerBase): The model's tokenizer.
        tokenizer_options (mapping): Of the tokenizer's call, ``add_special_tokens``,
            ``max_length`` and ``truncation``, as a pipeline has them.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase = NOT_GIVEN
    tokenizer_options: Mapping[str, Any] = field(
        default_factory=dict, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        check_parts(type(self).__name__, self.model, self.tokenizer, "tokenizer")
        advice = "a mapping, such as {'max_length': 128}"
        check_type("tokenizer_options", self.tokenizer_options, Mapping, advice)

    @classmethod
    def _of_loaded(
        cls: type[_Model], name: Given, model: PreTrainedModel, companion: Any
    ) -> _Model:
        return cls(model, companion, _tokenizer_options(name))

    @property
    def encoder(self) -> TextEncoder:
        """What turns texts into the model's arguments."""
        return TextEncoder(self.model, self.tokenizer, self.tokenizer_options)
