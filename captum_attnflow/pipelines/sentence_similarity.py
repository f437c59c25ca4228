"""Pairs of texts in, their similarity out, and which tokens of each make it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from rich.text import Text
from torch import Tensor
from transformers import AutoModel, AutoTokenizer
from transformers.utils import cached_file

from captum_attnflow._checks import check_choice, is_pipeline
from captum_attnflow.attr import SLALOM
from captum_attnflow.long_form import LongForm, ScoredRows, Tokens, refuse_tokens
from captum_attnflow.pipelines.encoding import EncodedTexts, ModelOfTexts, Truncation
from captum_attnflow.pipelines.methods import DEFAULT_METHOD, METHODS, find_method
from captum_attnflow.pipelines.pretrained import (
    DeviceMap,
    Given,
    Kind,
    check_pairs,
    outputs_by_position,
)
from captum_attnflow.pipelines.text_classification import TextAttribution
from captum_attnflow.pipelines.token_scores import (
    Output,
    OutputAttribution,
    ScoredText,
)
from captum_attnflow.scored_tokens import escaped
from captum_attnflow.show.text import safe_record, visualize_text
from captum_attnflow.storage import Storable

Pooling = Literal["mean", "cls"]
_POOLING_FILE = "1_Pooling/config.json"
"""Of sentence-transformers: how embeddings are pooled."""
_SIMILARITY = "similarity"
# In it, the flag of each pooling.
_FLAGS: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
}
# Of sentence-transformers' modules, those whose cosine is the one computed here. Others
# change the embedding, as Dense does.
_MODULES = ("Transformer", "Pooling", "Normalize")


@dataclass(frozen=True, eq=False)
class SideAttribution(TextAttribution):
    """What a similarity rests on in one of two texts; ``text_pair`` is the other.

    Attributes:
        side (str): ``"first"`` or ``"second"``.
    """

    side: Literal["first", "second"] = field(kw_only=True)

    @property
    def explained(self) -> str:
        """The similarity, and by which of its texts."""
        return f"{self.target} by the {self.side} text"

    def _beside_label(self) -> dict[str, Any]:
        return {"explained": self.explained}


@dataclass(frozen=True, eq=False)
class SimilarityAttribution(Storable, LongForm):
    """What the similarity of two texts rests on, in each given the other.

    The value of a notebook's cell is shown as Captum's text picture, a row per text,
    and rich prints both with coloured tokens. Scores of a text are those of the
    similarity as a function of this text alone, with the other fixed: each text's
    scores account for the whole similarity, and pairs of tokens have none.

    Attributes:
        first (SideAttribution): The first text; its ``value`` is the similarity.
        second (SideAttribution): The second text.
        similarity (float): The cosine of the embeddings, in [-1, 1].
        index (int): Which of the given pairs it is, counted from 0.
    """

    first: SideAttribution
    second: SideAttribution
    similarity: float
    index: int = 0

    @property
    def explained(self) -> str:
        """What both texts explain."""
        return self.first.target

    @property
    def attributions(self) -> tuple[SideAttribution, ...]:
        """What has scores: both texts."""
        return self.first, self.second

    def _scored_rows(self, first: int, tokens: Tokens | None) -> Iterator[ScoredRows]:
        refuse_tokens(self, tokens)
        for each in self.attributions:
            yield from each._scored_rows(first, None)

    def _repr_html_(self) -> str:
        sides = (self.first, self.second)
        rows = [safe_record(one.tokens, one.scores, **one.labels) for one in sides]
        notes = "".join(f"<p>{escaped(one.note)}</p>" for one in sides if one.note)
        return str(visualize_text(rows).data) + notes

    def __rich__(self) -> Text:
        return self.first.__rich__() + Text("\n") + self.second.__rich__()


@dataclass(frozen=True)
class SentenceSimilarity(ModelOfTexts):
    """An encoder of texts whose embeddings are compared, with its tokenizer.

    A text's embedding is the mean of the encoder's last hidden states over its tokens,
    special tokens included, or that of its first token; the similarity is the cosine.
    This is what the models of sentence-transformers compute, which are read without
    that library.

    Attributes:
        model (PreTrainedModel): Such as ``AutoModel`` loads, in eval mode.
        tokenizer (PreTrainedTokenizerBase): The model's tokenizer.
        tokenizer_options (mapping): Of the tokenizer's call, ``add_special_tokens``,
            ``max_length`` and ``truncation``.
        pooling (str): ``"mean"`` or ``"cls"``; by its name alone.

    Examples::

        >>> from captum_attnflow.demo import load_demo_model
        >>> classifier, tokenizer = load_demo_model()
        >>> similarity = SentenceSimilarity(classifier.bert, tokenizer)
        >>> [result] = similarity.explain([("a funny film", "so funny")])
        >>> result.first.tokens
        ('[CLS]', 'a', 'funny', 'film', '[SEP]')
        >>> abs(sum(result.second.scores) - result.similarity) < 1e-4
        True
    """

    _kind = Kind(
        "an encoder of texts",
        AutoModel,
        AutoTokenizer.from_pretrained,
        unused=("pooler.",),
    )

    pooling: Pooling = field(default="mean", kw_only=True)

    def __post_init__(self) -> None:
        _refuse_pooling("tokenizer_options", self.tokenizer_options)
        super().__post_init__()
        check_choice("pooling", self.pooling, get_args(Pooling))

    @classmethod
    def load(
        cls,
        name: Given,
        device: str | None = None,
        dtype: str = "float32",
        device_map: DeviceMap | None = None,
        *,
        pooling: Pooling | None = None,
    ) -> SentenceSimilarity:
        """Load an encoder from a local folder, by its hub id, or from a pipeline.

        Of a folder or repository of sentence-transformers, the ``config.json`` of its
        pooling (``1_Pooling``, or where ``modules.json`` has it) says how embeddings
        are pooled, and ``sentence_bert_config.json`` how long texts may be.

        Args:
            name (str, path or Pipeline): As :func:`load_pretrained` takes it, which
                says what is read; a pipeline of feature extraction.
            device (str, optional): Where the model runs.
            dtype (str): Of its weights.
            device_map (str or mapping, optional): How it is split over devices.
            pooling (str, optional): ``"mean"`` or ``"cls"``; by default as the model
                says, and ``"mean"`` where it says nothing.

        Raises:
            FileNotFoundError: As :func:`load_pretrained`.
            ValueError: As :func:`load_pretrained`, or if the model pools in another
                way, or has further modules behind its pooling, or a pooling was given
                without its name.
        """
        _refuse_pooling("device", device)
        if pooling is not None:
            check_choice("pooling", pooling, get_args(Pooling))
        loaded = super().load(name, device, dtype, device_map)
        options = loaded.tokenizer_options
        if not is_pipeline(name):
            _check_modules(str(name))
            options = _length_of(str(name))
            pooling = pooling or _pooling_of(str(name))
        return replace(loaded, tokenizer_options=options, pooling=pooling or "mean")

    def explain(
        self,
        pairs: Sequence[tuple[str, str]],
        method: str = DEFAULT_METHOD,
        *,
        truncation: Truncation = "truncate",
        **options: Any,
    ) -> list[SimilarityAttribution]:
        """Compare pairs of texts, and attribute the similarity to each text's tokens.

        Args:
            pairs (sequence of tuple): The pairs, ``(first, second)``.
            method (str): A key of
                :data:`captum_attnflow.pipelines.methods.METHODS`. SLALOM takes the
                cosine as it is.
            truncation (str): What becomes of a text longer than the model's limit:
                ``"truncate"`` cuts its end off, with a warning; ``"refuse"`` raises.
                There is no ``"window"``: a text has one embedding.
            **options: Options of the method, such as ``residual``.

        Returns:
            list[SimilarityAttribution]: One per pair.

        Raises:
            ValueError: If there is no pair, one is no pair of texts, or the method or
                an option is unknown.
        """
        make_attribution = find_method(method, options, METHODS)
        check_choice("truncation", truncation, ("truncate", "refuse"))
        check_pairs("first", "second", pairs)
        texts = [first for first, _ in pairs] + [second for _, second in pairs]
        encoded = self.encoder.encode(
            texts, truncation, with_places=self.tokenizer.is_fast
        )
        size = len(pairs)
        embeddings = self._embeddings(encoded, size)
        others = embeddings.roll(-size, 0)
        similarities = torch.cosine_similarity(embeddings, others)
        if make_attribution is SLALOM:
            # A cosine is no probability.
            options = {"link": "identity", **options}
        scored = OutputAttribution(
            make_attribution,
            options,
            self._forward(encoded.names, others),
            self.model,
            self.tokenizer,
            encoded,
            (torch.arange(2 * size, device=encoded.ids.device),),
        ).explain([[Output(row)] for row in range(2 * size)], size)
        sides = [
            _side(texts, row, encoded, float(similarities[row]), one, method)
            for row, one in enumerate(scored)
        ]
        return [
            SimilarityAttribution(
                first=sides[index],
                second=sides[size + index],
                similarity=float(similarities[index]),
                index=index,
            )
            for index in range(size)
        ]

    def _embed(self, arguments: Mapping[str, Tensor]) -> Tensor:
        """Embeddings of a batch, ``(B, D)``."""
        states: Tensor = self.model(**arguments).last_hidden_state
        mask = arguments["attention_mask"].to(states)
        if self.pooling == "mean":
            return (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        # The first token, behind padding that stands on the left.
        first = mask.argmax(1)
        return states[torch.arange(len(states), device=states.device), first]

    def _embeddings(self, encoded: EncodedTexts, size: int) -> Tensor:
        names = ("input_ids", *encoded.names)
        parts = []
        for start in range(0, len(encoded.ids), size):
            rows = [part[start : start + size] for part in encoded.arguments]
            with torch.no_grad():
                parts.append(self._embed(dict(zip(names, rows, strict=True))))
        return torch.cat(parts)

    def _forward(self, names: Sequence[str], others: Tensor) -> Callable[..., Tensor]:
        """Similarity to a fixed embedding, given by its row: ``(B,)``."""

        def similarity(other: Tensor, **arguments: Tensor) -> Tensor:
            return torch.cosine_similarity(self._embed(arguments), others[other])

        return outputs_by_position(similarity, (*names, "other"))


def _refuse_pooling(name: str, given: object) -> None:
    """Refuse a pooling where another argument stands, as when given by its place."""
    if isinstance(given, str) and given in get_args(Pooling):
        raise ValueError(
            f"{name}={given!r} is a pooling; pooling is given by name: "
            f"pooling={given!r}"
        )


def _side(
    texts: Sequence[str],
    row: int,
    encoded: EncodedTexts,
    similarity: float,
    scored: ScoredText,
    method: str,
) -> SideAttribution:
    size = len(texts) // 2
    return SideAttribution(
        text=texts[row],
        text_pair=texts[(row + size) % len(texts)],
        side="first" if row < size else "second",
        tokens=encoded.tokens[row],
        scores=scored.scores,
        predicted=_SIMILARITY,
        probability=None,
        target=_SIMILARITY,
        flow_value=scored.flow_value,
        slalom=scored.slalom,
        value=similarity,
        output=scored.output,
        index=row % size,
        method=method,
        n_truncated=encoded.n_truncated[row],
        words=encoded.words[row],
    )


def _read_json(name: str, file: str) -> Any:
    """Read a file of a folder or repository, None if there is none."""
    is_folder = Path(name).is_dir()
    found = cached_file(
        name,
        file,
        local_files_only=is_folder,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if found is None:
        return None
    try:
        return json.loads(Path(found).read_text("utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{file} of {name!r} is no JSON: {error}. Mend it, or give the model and "
            "its tokenizer to SentenceSimilarity(model, tokenizer, pooling=...)"
        ) from error


def _modules(name: str) -> list[tuple[str, str]]:
    """The kind and the folder of each module of sentence-transformers' list, if any."""
    return [
        (str(module.get("type", "")).rpartition(".")[2], str(module.get("path", "")))
        for module in _read_json(name, "modules.json") or []
    ]


def pooling_file(name: str) -> str:
    """Return the path of what says how a model's embeddings are pooled, if it is there.

    Args:
        name (str): The model's folder or hub id.

    Raises:
        ValueError: If ``modules.json`` is no JSON.
    """
    named = (path for kind, path in _modules(name) if kind == "Pooling" and path)
    folder = next(named, None)
    return _POOLING_FILE if folder is None else f"{folder.rstrip('/')}/config.json"


def _check_modules(name: str) -> None:
    others = [kind for kind, _ in _modules(name) if kind not in _MODULES]
    if others:
        raise ValueError(
            f"modules.json of {name!r} has {', '.join(others)}, which changes the "
            f"embedding and is not read here; give a model of {', '.join(_MODULES)} "
            "alone"
        )


def _pooling_of(name: str) -> Pooling | None:
    """What sentence-transformers' file says, None if there is none."""
    file = pooling_file(name)
    config = _read_json(name, file)
    if config is None:
        return None
    flagged = [
        flag.removeprefix("pooling_mode_")
        for flag, value in config.items()
        if flag.startswith("pooling_mode_") and value is True
    ]
    modes = flagged or [config.get("pooling_mode")]
    known = {flag.removeprefix("pooling_mode_"): mode for flag, mode in _FLAGS.items()}
    known |= {mode: mode for mode in get_args(Pooling)}
    if len(modes) != 1 or modes[0] not in known:
        raise ValueError(
            f"{file} of {name!r} pools by {modes}; mean and cls are "
            'read here. Give pooling="mean" or "cls" if one of them is meant'
        )
    return known[modes[0]]


def _length_of(name: str) -> dict[str, Any]:
    """The tokenizer's options that sentence-transformers' file asks for."""
    config = _read_json(name, "sentence_bert_config.json") or {}
    if config.get("do_lower_case"):
        raise ValueError(
            f"sentence_bert_config.json of {name!r} asks for lower case, which is not "
            "done here; give lower case texts to "
            "SentenceSimilarity(model, tokenizer, pooling=...)"
        )
    length = config.get("max_seq_length")
    return {} if length is None else {"truncation": True, "max_length": length}
