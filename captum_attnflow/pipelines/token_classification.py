"""Texts in, a label per word out, and what each label rests on: NER and its like."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from textwrap import shorten
from typing import Any, Literal, cast, get_args

import torch
from rich.text import Text
from torch import Tensor
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from captum_attnflow._checks import check_choice, counted, described
from captum_attnflow.long_form import LongForm, ScoredRows, Tokens, refuse_tokens
from captum_attnflow.pipelines.encoding import (
    EncodedTexts,
    ModelOfTexts,
    TokenPlaces,
    Truncation,
    Windowed,
)
from captum_attnflow.pipelines.methods import DEFAULT_METHOD, METHODS, find_method
from captum_attnflow.pipelines.predictions import (
    check_outputs,
    find_target,
    labels_of,
    labels_of_outputs,
)
from captum_attnflow.pipelines.pretrained import Kind, check_texts, logits_by_position
from captum_attnflow.pipelines.text_classification import TextAttribution
from captum_attnflow.pipelines.token_scores import (
    Output,
    OutputAttribution,
    ScoredText,
)
from captum_attnflow.scored_tokens import escaped, printable
from captum_attnflow.show.text import safe_record, visualize_text
from captum_attnflow.storage import Storable

Unit = Literal["word", "entity"]
_OUTSIDE = "O"
_NONE_EXPLAINED = (
    "no word is explained: those labelled O are not, unless they are named"
)


@dataclass(frozen=True)
class LabelledWord:
    """A word or an entity of a text, with its label.

    Attributes:
        text (str): As it stands in the text.
        start (int): Its first character in the text.
        end (int): The character behind its last one.
        label (str): The predicted label; of an entity without ``B-`` and ``I-``.
        probability (float): Its probability, of an entity the mean of its words'.
    """

    text: str
    start: int
    end: int
    label: str
    probability: float


@dataclass(frozen=True, eq=False)
class WordAttribution(TextAttribution):
    """What the label of a word rests on: the tokens of its text, scored.

    Attributes:
        word (LabelledWord): The word or entity. ``predicted`` and ``probability`` are
            its own.
    """

    word: LabelledWord = field(kw_only=True)

    @property
    def explained(self) -> str:
        """The word and the label that the scores explain."""
        return f"{self.word.text}: {super().explained}"

    def _beside_label(self) -> dict[str, Any]:
        return {"explained": self.explained}

    @property
    def note(self) -> str:
        """How a text longer than the model's limit was read; empty for others."""
        if self.n_windows > 1:
            return (
                f"mean of those of {self.n_windows} overlapping windows of the text "
                "that show the word"
            )
        return super().note

    @property
    def labels(self) -> dict[str, Any]:
        """What Captum's record says beside tokens and scores; the word stands first."""
        known = super().labels
        return {**known, "predicted": f"{self.word.text}: {self.predicted}"}


@dataclass(frozen=True, eq=False)
class LabelledWords(Storable, LongForm):
    """The words of one text with their labels, some of which are explained.

    The value of a notebook's cell is shown as Captum's text picture, a row per
    explained word, and rich prints it with coloured tokens.

    Attributes:
        text (str): The text.
        words (tuple of LabelledWord): All words, or all entities and the words between
            them, in their order.
        attributions (tuple of WordAttribution): Of the explained ones.
        index (int): Which of the given texts it is, counted from 0.
        n_truncated (int): Tokens that the model did not see, which have no label.
        n_windows (int): Windows of a long text; 1 where the model saw it at once.
    """

    text: str
    words: tuple[LabelledWord, ...]
    attributions: tuple[WordAttribution, ...]
    index: int = 0
    n_truncated: int = 0
    n_windows: int = 1

    @property
    def explained(self) -> str:
        """The words and the labels that are explained."""
        return ", ".join(each.explained for each in self.attributions)

    def _scored_rows(self, first: int, tokens: Tokens | None) -> Iterator[ScoredRows]:
        refuse_tokens(self, tokens)
        for each in self.attributions:
            yield from each._scored_rows(first, None)

    def _repr_html_(self) -> str:
        words = "".join(
            f"{escaped(word.text)} <b>{escaped(word.label)}</b> "
            for word in self.words
            if word.label != _OUTSIDE
        )
        rows = [
            safe_record(each.tokens, each.scores, **each.labels)
            for each in self.attributions
        ]
        table = str(visualize_text(rows).data) if rows else ""
        return f"<p>{escaped(self.text)}</p><p>{words}</p>{table}{self._notes()}"

    def _notes(self) -> str:
        notes = dict.fromkeys(each.note for each in self.attributions if each.note)
        if not self.attributions:
            notes[_NONE_EXPLAINED] = None
        return "".join(f"<p>{escaped(note)}</p>" for note in notes)

    def __rich__(self) -> Text:
        heading = Text()
        for word in self.words:
            heading.append(f"{printable(word.text)} ")
            if word.label != _OUTSIDE:
                heading.append(
                    f"[{printable(word.label)} {word.probability:.3f}] ", "bold"
                )
        explained = [each.__rich__() for each in self.attributions]
        return Text("\n").join([heading, *(explained or [Text(_NONE_EXPLAINED)])])


@dataclass(frozen=True)
class _Unit:
    """A word or entity, and the positions of the first tokens of its words."""

    word: LabelledWord
    firsts: tuple[int, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True)
class TokenClassifier(ModelOfTexts):
    """A token classifier with its tokenizer, such as for named entities (NER).

    A word's label is that of its first token, as models of words are trained.

    Attributes:
        model (PreTrainedModel): With a head that labels tokens, in eval mode.
        tokenizer (PreTrainedTokenizerBase): The model's tokenizer, a fast one, which
            knows the words.
        tokenizer_options (mapping): Of the tokenizer's call, as a pipeline has them.

    Examples::

        >>> import torch, transformers
        >>> from captum_attnflow.demo import load_demo_model
        >>> _, tokenizer = load_demo_model()
        >>> _ = torch.manual_seed(0)
        >>> config = transformers.BertConfig(
        ...     vocab_size=len(tokenizer),
        ...     hidden_size=32,
        ...     num_hidden_layers=2,
        ...     num_attention_heads=4,
        ...     intermediate_size=64,
        ...     id2label={0: "O", 1: "B-PER", 2: "I-PER"},
        ... )
        >>> model = transformers.AutoModelForTokenClassification.from_config(config)
        >>> classifier = TokenClassifier(model.eval(), tokenizer)
        >>> [result] = classifier.explain(["gripping film"], words=["film"])
        >>> [word.text for word in result.words]
        ['gripping', 'film']
        >>> [attribution] = result.attributions
        >>> attribution.word.text, attribution.tokens
        ('film', ('[CLS]', 'gripping', 'film', '[SEP]'))
    """

    _kind = Kind(
        "a token classifier",
        AutoModelForTokenClassification,
        AutoTokenizer.from_pretrained,
    )

    @property
    def labels(self) -> list[str]:
        """The model's labels, by index."""
        return labels_of(self.model)

    def explain(
        self,
        texts: Sequence[str],
        method: str = DEFAULT_METHOD,
        target: str | int | None = None,
        *,
        words: Sequence[int | str] | None = None,
        unit: Unit = "word",
        truncation: Truncation = "truncate",
        stride: int | None = None,
        **options: Any,
    ) -> list[LabelledWords]:
        """Label the words of texts, and attribute labels to the tokens of the text.

        The output that is attributed is the label's logit at the first token of the
        word. Of an entity it is the mean over its words, each with its own label. Under
        ``truncation="window"`` it is the mean over the windows that show the word; a
        token that a window does not show has no part in it.

        Args:
            texts (sequence of str): The texts.
            method (str): A key of
                :data:`captum_attnflow.pipelines.methods.METHODS`. SLALOM deletes the
                other tokens, and the word's first token has a score of 0.
            target (str or int, optional): Label or index to attribute; what the model
                predicts of each word by default.
            words (sequence of int or str, optional): Which words or entities to
                explain, of each text: indices into the result's ``words``, or words as
                they stand in the text; by default those whose label is not ``"O"``.
            unit (str): ``"word"``, or ``"entity"``: neighbouring words with labels such
                as ``B-PER`` and ``I-PER``, or with the same label, are one.
            truncation (str): What becomes of a text longer than the model's limit, as
                in :meth:`TextClassifier.explain`.
            stride (int, optional): Tokens in which neighbouring windows overlap.
            **options: Options of the method, such as ``residual``.

        Returns:
            list[LabelledWords]: One per text.

        Raises:
            ValueError: If a text is empty or no text, or the method, an option, the
                target or a word is unknown.
        """
        make_attribution = find_method(method, options, METHODS)
        check_choice("unit", unit, get_args(Unit))
        check_texts("text", texts)
        _check_words(words)
        encoded = self.encoder.encode(
            texts, truncation, Windowed(stride), with_places=True
        )
        forward = logits_by_position(self.model, encoded.names)
        logits = self._logits(forward, encoded, len(texts))
        check_outputs(logits)
        labels = labels_of_outputs(self.model, logits.shape[-1])
        wanted = None if target is None else find_target(target, labels)
        units = [
            _units(text, number, encoded, logits, labels, unit)
            for number, text in enumerate(texts)
        ]
        chosen = [
            (number, each)
            for number, of_text in enumerate(units)
            for each in _chosen(of_text, words)
        ]
        _check_all_found(words, [each.word.text for _, each in chosen], len(texts))
        attribution = OutputAttribution(
            make_attribution, options, forward, self.model, self.tokenizer, encoded
        )
        means = [_outputs(encoded, number, each, wanted) for number, each in chosen]
        scored = attribution.explain(means, len(texts)) if means else []
        return [
            LabelledWords(
                text=text,
                words=tuple(each.word for each in units[number]),
                attributions=tuple(
                    _attribution(
                        text, number, each.word, one, encoded, labels, wanted, method
                    )
                    for (owner, each), one in zip(chosen, scored, strict=True)
                    if owner == number
                ),
                index=number,
                n_truncated=encoded.n_truncated[number],
                n_windows=len(encoded.rows_of(number)),
            )
            for number, text in enumerate(texts)
        ]

    def _logits(self, forward: Any, encoded: EncodedTexts, size: int) -> Tensor:
        with torch.no_grad():
            logits = torch.cat(
                [
                    forward(*(part[start : start + size] for part in encoded.arguments))
                    for start in range(0, len(encoded.ids), size)
                ]
            )
        return logits.float().cpu()


def _attribution(
    text: str,
    number: int,
    word: LabelledWord,
    scored: ScoredText,
    encoded: EncodedTexts,
    labels: Sequence[str],
    wanted: int | None,
    method: str,
) -> WordAttribution:
    return WordAttribution(
        text=text,
        tokens=encoded.tokens[number],
        scores=scored.scores,
        predicted=word.label,
        probability=word.probability,
        target=word.label if wanted is None else labels[wanted],
        flow_value=scored.flow_value,
        slalom=scored.slalom,
        output=scored.output,
        index=number,
        n_truncated=encoded.n_truncated[number],
        n_windows=len(encoded.rows_of(number)),
        method=method,
        words=encoded.words[number],
        word=word,
    )


def _units(
    text: str,
    number: int,
    encoded: EncodedTexts,
    logits: Tensor,
    labels: Sequence[str],
    unit: Unit,
) -> list[_Unit]:
    """Label the words of a text, and merge them to entities if these are wanted."""
    words = []
    for first, (start, end) in _first_tokens(encoded.places[number]).items():
        rows = [
            logits[row, column]
            for row in encoded.rows_of(number)
            if (column := encoded.column_of(row, first)) is not None
        ]
        probabilities = torch.stack(rows).mean(0).softmax(-1)
        label = int(probabilities.argmax())
        labelled = LabelledWord(
            text[start:end], start, end, labels[label], float(probabilities[label])
        )
        words.append(_Unit(labelled, (first,), (label,)))
    return words if unit == "word" else _merged(text, words)


def _first_tokens(places: TokenPlaces) -> dict[int, tuple[int, int]]:
    """Each word's characters, by the position of its first token."""
    firsts: dict[int, int] = {}
    spans: dict[int, tuple[int, int]] = {}
    for position, (word, span) in enumerate(
        zip(places.words, places.spans, strict=True)
    ):
        if word is None:
            continue
        first = firsts.setdefault(word, position)
        start, end = spans.get(first, span)
        spans[first] = (min(start, span[0]), max(end, span[1]))
    return spans


def _merged(text: str, words: Sequence[_Unit]) -> list[_Unit]:
    """Merge neighbouring words of one entity."""
    groups: list[list[_Unit]] = []
    previous = ""
    for each in words:
        begins, kind = _tag(each.word.label)
        if groups and kind != _OUTSIDE and kind == previous and not begins:
            groups[-1].append(each)
        else:
            groups.append([each])
        previous = kind
    return [_entity(text, group) for group in groups]


def _entity(text: str, group: Sequence[_Unit]) -> _Unit:
    start, end = group[0].word.start, group[-1].word.end
    mean = sum(each.word.probability for each in group) / len(group)
    label = _tag(group[0].word.label)[1]
    return _Unit(
        LabelledWord(text[start:end], start, end, label, mean),
        tuple(first for each in group for first in each.firsts),
        tuple(label for each in group for label in each.labels),
    )


def _tag(label: str) -> tuple[bool, str]:
    """Whether a label begins an entity, and of which kind that is."""
    prefix, dash, kind = label.partition("-")
    if dash and prefix in ("B", "S", "U"):
        return True, kind
    if dash and prefix in ("I", "E", "L", "M"):
        return False, kind
    return False, label


def _outputs(
    encoded: EncodedTexts, number: int, unit: _Unit, wanted: int | None
) -> list[Output]:
    """What is attributed: the label's logit at each first token, in each window."""
    return [
        Output(row, (column, label if wanted is None else wanted))
        for first, label in zip(unit.firsts, unit.labels, strict=True)
        for row in encoded.rows_of(number)
        if (column := encoded.column_of(row, first)) is not None
    ]


def _check_words(words: object) -> None:
    is_list = isinstance(words, Sequence) and not isinstance(words, (str, bytes))
    given = list(cast(Sequence[object], words)) if is_list else []
    wrong = [
        word
        for word in given
        if isinstance(word, bool)
        or not isinstance(word, (int, str))
        or (isinstance(word, int) and word < 0)
    ]
    if words is not None and (not given or wrong):
        raise ValueError(
            f"words={described(words)}; give a list of indices from 0 on, or of words "
            "as they stand in the text"
        )


def _chosen(units: Sequence[_Unit], words: Sequence[int | str] | None) -> list[_Unit]:
    if words is None:
        return [each for each in units if each.word.label != _OUTSIDE]
    for word in words:
        if isinstance(word, int) and word >= len(units):
            known = shorten(" ".join(each.word.text for each in units), 60)
            raise ValueError(
                f"words={list(words)!r} names word {word}, but a text has {len(units)}:"
                f" {known!r}; give indices from 0 to {len(units) - 1}"
            )
    return [
        each
        for index, each in enumerate(units)
        if index in words or each.word.text in words
    ]


def _check_all_found(
    words: Sequence[int | str] | None, found: Sequence[str], n_texts: int
) -> None:
    missing = [w for w in words or () if isinstance(w, str) and w not in found]
    if missing:
        raise ValueError(
            f"words={list(words or ())!r} names {missing}, which none of "
            f"{counted(n_texts, 'text')} has as a word; give words as the tokenizer "
            "separates them, as explain(...)[0].words shows them, or indices"
        )
