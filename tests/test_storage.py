"""Results in files: equal to the last bit, or refused in words."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import io
import itertools
import json
import math
import os
import pickle
import random
import re
import signal
import struct
import time
from collections.abc import Mapping
from importlib import import_module

import pytest
import safetensors
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import VOCABULARY, causal_language_model, numbers_tokenizer
from networks import networks
from PIL import Image
from safetensors.torch import load_file, save_file
from storage_writer import alternate, large
from warm_processes import warm_processes

from captum_attnflow import (
    BarrierSolver,
    Explanation,
    GeneralizedAttentionFlow,
    GenerationExplanation,
    __version__,
)
from captum_attnflow._tree import CLASSES, Compared
from captum_attnflow.capture import Propagation, TokenSequence
from captum_attnflow.explanation import ConservationDiagnostics, GivenFlow
from captum_attnflow.flow.network import LayeredNetwork
from captum_attnflow.flow.scores import FlowDiagnostics
from captum_attnflow.flow.solvers import FlowSolution, solve_flow
from captum_attnflow.pipelines.image_classification import ImageAttribution, Patch
from captum_attnflow.pipelines.methods import (
    GENERATION_METHODS,
    METHODS,
    method_class,
)
from captum_attnflow.pipelines.provenance import hash_of_companion, hash_of_model
from captum_attnflow.pipelines.text_classification import TextAttribution
from captum_attnflow.pipelines.text_generation import GeneratedText, TextGenerator
from captum_attnflow.storage import (
    FORMAT_VERSION,
    KINDS,
    Provenance,
    load_results,
    save_results,
)

TEXTS = ["a gripping , funny film", "dull"]


def differences(where: str, one: object, other: object) -> list[str]:
    """Name the places at which two results differ in type, shape or a bit."""
    if type(one) is not type(other):
        return [f"{where}: {type(one)} and {type(other)}"]
    if isinstance(one, torch.Tensor):
        alike = one.dtype == other.dtype and one.shape == other.shape
        copies = [torch.empty(t.shape, dtype=t.dtype).copy_(t) for t in (one, other)]
        bits = [each.reshape(-1).view(torch.uint8) for each in copies]
        return [] if alike and torch.equal(*bits) else [f"{where}: {one} and {other}"]
    if isinstance(one, float):
        if math.isnan(one) and math.isnan(other):
            return []
        pair = [struct.pack("d", each) for each in (one, other)]
        return [] if len(set(pair)) == 1 else [f"{where}: {one} and {other}"]
    if dataclasses.is_dataclass(one):
        one, other = vars(one), vars(other)
    if isinstance(one, Mapping):
        one, other = [list(map(list, each.items())) for each in (one, other)]
    if isinstance(one, (list, tuple)):
        if len(one) != len(other):
            return [f"{where}: {len(one)} and {len(other)} entries"]
        pairs = enumerate(zip(one, other, strict=True))
        return [d for i, pair in pairs for d in differences(f"{where}.{i}", *pair)]
    return [] if one == other else [f"{where}: {one!r} and {other!r}"]


@pytest.fixture(scope="module")
def encoded(demo):
    return demo.encode(TEXTS)


@pytest.fixture(scope="module")
def explain(demo, encoded):
    """Explain the texts by a method, on the level of tensors."""

    def forward(ids, attention_mask):
        return demo.model(input_ids=ids, attention_mask=attention_mask).logits

    def explain(method, **options):
        attribution = method_class(method)(forward, **options)
        return attribution.explain(
            encoded["input_ids"],
            target=1,
            additional_forward_args=(encoded["attention_mask"],),
        )

    return explain


@pytest.fixture(scope="module")
def stored(demo, tmp_path_factory):
    """A small file of two texts' attributions, as bytes."""
    path = tmp_path_factory.mktemp("stored") / "texts.safetensors"
    results = demo.explain(TEXTS, "attention-rollout")
    save_results(results, path, demo.provenance("attention-rollout"))
    return path.read_bytes()


def changed(path, data, change):
    """Write a file again after a change of what its header holds.

    Without a checksum, like the files of earlier versions.
    """
    path.write_bytes(data)
    with safetensors.safe_open(path, "pt") as file:
        content = json.loads(file.metadata()["captum_attnflow"])
    del content["checksum"]
    content = change(content) or content
    tensors = load_file(path)
    save_file(tensors, path, {"captum_attnflow": json.dumps(content)})
    return path


# Round trips


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("relevance-flow", {}),
        ("relevance-flow", {"flow": "maximum"}),
        ("generalized-attention-flow", {}),
        ("generalized-attention-flow", {"game": "joint"}),
        ("attention-flow", {}),
        ("attention-rollout", {}),
        ("chefer-relevance", {}),
        ("slalom", {}),
    ],
)
def test_what_explain_returns_is_read_as_it_was(explain, tmp_path, method, options):
    path = tmp_path / "x.safetensors"
    result = explain(method, **options)
    result.save(path)
    read = type(result).load(path)
    solved = result._as_stored()
    assert differences("result", solved, read) == []
    assert read == result
    assert differences("scores", result.scores, read.scores) == []
    if isinstance(result, Explanation):
        assert differences("value", result.flow_value, read.flow_value) == []
        assert differences("flow", result.flow, read.flow) == []
        assert differences("cut", result.cut, read.cut) == []
        assert differences("delta", result.delta, read.delta) == []
    else:
        errors = result.value_standard_errors, read.value_standard_errors
        assert differences("errors", *errors) == []
        assert differences("delta", result.delta, read.delta) == []


@pytest.mark.parametrize("method", METHODS)
def test_attributions_of_texts_are_read_as_they_were(demo, tmp_path, method):
    path = tmp_path / "x.safetensors"
    results = demo.explain(TEXTS, method)
    save_results(results, path)
    assert differences("", tuple(results), load_results(path).results) == []
    assert load_results(path).results == tuple(results)
    results[1].save(path)
    assert differences("", results[1], TextAttribution.load(path)) == []


@pytest.mark.parametrize("method", GENERATION_METHODS)
def test_generated_text_is_read_as_it_was(tmp_path, method):
    generator = TextGenerator(causal_language_model(VOCABULARY), numbers_tokenizer())
    results = generator.explain(["7 8 9", "10"], method, max_new_tokens=3)
    save_results(results, tmp_path / "x")
    assert differences("", tuple(results), load_results(tmp_path / "x").results) == []
    assert load_results(tmp_path / "x").results == tuple(results)
    results[0].explanation.save(tmp_path / "x")
    read = GenerationExplanation.load(tmp_path / "x")
    assert differences("", results[0].explanation, read) == []


def test_contrasts_and_spans_of_generated_text_are_read_as_they_were(tmp_path):
    generator = TextGenerator(causal_language_model(VOCABULARY), numbers_tokenizer())
    for options in ({"against": "11 13"}, {"spans": [(0, 2)]}):
        (result,) = generator.explain(["7 8 9"], target="11 12", **options)
        explanation = result.explanation
        assert explanation.against or explanation.spans == ((0, 2),)
        result.save(tmp_path / "x")
        assert differences("", result, GeneratedText.load(tmp_path / "x")) == []


def test_an_image_is_read_as_it_was(tmp_path):
    result = ImageAttribution(
        image="photo.png",
        patches=(Patch((0, 0, 2, 2), -0.0), Patch((2, 0, 4, 2), math.nan)),
        predicted="cat",
        probability=0.1 + 0.2,
        target="\ud800 dog",  # half a character
        flow_value=None,
        pixels=torch.rand(3, 2, 4),
    )
    result.save(tmp_path / "x")
    assert differences("", result, ImageAttribution.load(tmp_path / "x")) == []
    assert ImageAttribution.load(tmp_path / "x") == result


FLOATS = st.floats(allow_nan=True, allow_infinity=True, width=64)
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def of_shape(*shape: int) -> st.SearchStrategy[torch.Tensor]:
    """Tensors of any float dtype, with NaN, infinity and negative zero, also views."""

    def make(numbers, dtype, transposed):
        made = torch.tensor(numbers, dtype=torch.float64).to(dtype).reshape(shape)
        return made.mT.contiguous().mT if transposed and made.dim() > 1 else made

    n = math.prod(shape)
    numbers = st.lists(FLOATS, min_size=n, max_size=n)
    return st.builds(make, numbers, st.sampled_from(DTYPES), st.booleans())


@st.composite
def explanations(draw: st.DrawFn, depth: int = 1) -> Explanation:
    network = draw(networks())
    if draw(st.booleans()):
        network = LayeredNetwork(network.capacity.float(), network.source, network.sink)
    n, n_tokens = network.n_networks, network.n_tokens
    vector, matrix = of_shape(n), of_shape(n, n_tokens)
    edges, nodes = network.capacity.shape, (n, network.n_layers + 1, n_tokens)
    none = st.none()
    counts = st.dictionaries(st.text(max_size=5), st.integers())
    propagation = st.builds(
        Propagation, counts, st.lists(st.text(max_size=5), max_size=2).map(tuple)
    )
    steps = st.integers(-(2**63), 2**63 - 1).map(lambda i: torch.tensor([i]))
    cut = st.just(torch.rand(nodes) < 0.5)
    flow = st.builds(GivenFlow, vector, none | of_shape(*edges), none | cut)
    diagnostics = st.one_of(
        none,
        st.builds(FlowDiagnostics, vector, vector, steps),
        st.builds(ConservationDiagnostics, vector, none | propagation),
    )
    numbers = st.integers(0, 9)
    sequence = st.builds(TokenSequence, numbers, st.lists(numbers).map(tuple))
    tokens = st.just(torch.arange(6).view(1, 2, 3)[:, :, 1:])
    return Explanation(
        scores=draw(matrix),
        network=network,
        joint_flow=draw(flow | st.just(FlowSolution.zero(network))),
        diagnostics=draw(diagnostics),
        against=draw(none | explanations(depth - 1)) if depth else None,
        direct=draw(none | matrix),
        unnormalized_scores=draw(none | matrix),
        output=draw(none | vector),
        sequences=draw(st.lists(sequence, max_size=2).map(tuple)),
        elements=draw(st.dictionaries(numbers, tokens, max_size=2)),
    )


@given(explanations())
@settings(max_examples=40, suppress_health_check=list(HealthCheck), deadline=None)
def test_any_explanation_is_read_as_it_was(tmp_path_factory, explanation):
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    explanation.save(path)
    assert differences("", explanation, Explanation.load(path)) == []
    assert Explanation.load(path) == explanation


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | FLOATS | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text() | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(JSON, st.dictionaries(st.text(), JSON))
@settings(max_examples=30, suppress_health_check=list(HealthCheck), deadline=None)
def test_where_results_come_from_is_read_as_it_was(tmp_path_factory, target, notes):
    path = tmp_path_factory.getbasetemp() / "from.safetensors"
    provenance = Provenance(
        method="slalom",
        options={"layers": (0, 1), "residual": 0.5},
        tokens=(("a", "b"), ("\udc80",)),
        target=target,
        notes=notes,
    )
    result = TextAttribution("a", ("a",), (1.0,), "x", None, "x")
    result.save(path, provenance)
    assert differences("", provenance, load_results(path).provenance) == []
    assert load_results(path).provenance == provenance


def test_a_target_may_be_a_tensor(tmp_path):
    provenance = Provenance(target=torch.tensor([1, 0]))
    result = TextAttribution("a", ("a",), (1.0,), "x", None, "x")
    result.save(tmp_path / "x", provenance)
    read = load_results(tmp_path / "x").provenance
    assert differences("", provenance, read) == []


def test_a_flow_that_was_not_read_is_solved_in_the_file_alone(explain, tmp_path):
    result = explain("attention-flow", game="independent")
    assert "solution" not in vars(result.joint_flow)
    result.select(slice(0, 1)).save(tmp_path / "x")
    read = Explanation.load(tmp_path / "x")
    assert isinstance(read.joint_flow, GivenFlow)
    solved = solve_flow(result.network.select(slice(0, 1)), "barrier")
    assert differences("flow", solved.flow, read.flow) == []
    assert "solution" not in vars(result.joint_flow)


def test_the_part_of_a_batch_holds_no_more_than_itself(explain, tmp_path):
    result = explain("attention-rollout")
    result.select(slice(1, 2)).save(tmp_path / "x")
    capacity = load_file(tmp_path / "x")["results.0.network.capacity"]
    assert torch.equal(capacity, result.network.capacity[1:2])


def in_order(data, names):
    """The file with the texts of its header in another order, and its checksum."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    texts = header["__metadata__"] | {"captum_attnflow_sha256": "0" * 64}
    header["__metadata__"] = {name: texts[name] for name in names}
    written = json.dumps(header, separators=(",", ":")).encode()
    written += b" " * (-len(written) % 8)
    data = len(written).to_bytes(8, "little") + written + data[end:]
    return data.replace(b"0" * 64, hashlib.sha256(data).hexdigest().encode(), 1)


def test_the_same_results_make_the_same_bytes(explain, stored, tmp_path):
    result, written = explain("relevance-flow"), set()
    for _ in range(16):
        result.save(tmp_path / "x", Provenance(notes={"b": 1, "a": torch.ones(2)}))
        written.add((tmp_path / "x").read_bytes())
    assert len(written) == 1
    for data in (stored, *written):
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        names = list(header["__metadata__"])
        assert names == ["captum_attnflow", "captum_attnflow_sha256"]
        assert in_order(data, names) == data
        # As earlier versions wrote them, at random.
        (tmp_path / "y").write_bytes(in_order(data, names[::-1]))
        (tmp_path / "x").write_bytes(data)
        assert load_results(tmp_path / "y") == load_results(tmp_path / "x")


def test_another_reader_of_safetensors_finds_the_scores(explain, tmp_path):
    result = explain("relevance-flow")
    result.save(tmp_path / "x.safetensors")
    assert torch.equal(
        load_file(tmp_path / "x.safetensors")["results.0.scores"], result.scores
    )
    with safetensors.safe_open(tmp_path / "x.safetensors", "pt") as file:
        content = json.loads(file.metadata()["captum_attnflow"])
    versions = content["format_version"], content["package_version"], content["kind"]
    assert versions == (FORMAT_VERSION, __version__, "Explanation")


# Equality


RESULTS = [getattr(import_module(CLASSES[kind]), kind) for kind in KINDS]


@pytest.mark.parametrize("made", RESULTS)
def test_every_kind_of_result_is_compared_to_the_last_bit(made):
    assert issubclass(made, Compared)
    # And by no method that @dataclass put before it.
    assert next(c for c in made.__mro__ if "__eq__" in vars(c)) in (Compared, made)
    assert ("__eq__" in vars(made)) == (made is Explanation)


def of_one_value(made: type, value: object) -> object:
    """An instance with the same in every field, whatever the field is for."""
    instance = object.__new__(made)
    for field in dataclasses.fields(made):
        object.__setattr__(instance, field.name, value)
    return instance


# An Explanation's flow, which may still be to solve, is compared by a rule of its own.
@pytest.mark.parametrize("made", [made for made in RESULTS if made is not Explanation])
def test_results_are_compared_by_type_and_bits_in_every_field(made):
    nan = [of_one_value(made, (float("nan"),)) for _ in range(2)]
    assert nan[0] == nan[1]
    tensors = [of_one_value(made, torch.tensor([1, math.nan])) for _ in range(2)]
    assert tensors[0] == tensors[1]
    assert hash(tensors[0]) == hash(tensors[1])
    assert of_one_value(made, 1) != of_one_value(made, 1.0)
    assert of_one_value(made, 0.0) != of_one_value(made, -0.0)


def of_numbers(*numbers: float, dtype=torch.float64) -> GenerationExplanation:
    scores = torch.tensor([numbers], dtype=dtype)
    tokens = ["x"] * len(numbers)
    return GenerationExplanation(tokens, scores, torch.zeros(1), torch.ones(1))


def test_results_are_equal_where_they_hold_the_same():
    result = of_numbers(1.0, math.nan, -0.0)
    assert result == of_numbers(1.0, math.nan, -0.0)
    assert hash(result) == hash(of_numbers(1.0, math.nan, -0.0))
    others = (
        of_numbers(1.0, 2.0, -0.0),
        of_numbers(1.0, math.nan, 0.0),
        of_numbers(math.nextafter(1.0, 2.0), math.nan, -0.0),
        of_numbers(1.0, math.nan, -0.0, 0.0),
        of_numbers(1.0, math.nan, -0.0, dtype=torch.float32),
        dataclasses.replace(result, outputs=torch.ones(1)),
        dataclasses.replace(result, parts=("prompt",) * 3),
        "another type",
    )
    assert [other for other in others if other == result] == []


@pytest.mark.parametrize("other", [1, True, None, 0.5, (1.0,), [math.nan], {"a": 1}])
def test_where_results_come_from_is_compared_by_type_too(other):
    assert Provenance(target=1.0) != Provenance(target=other)
    assert Provenance(notes={"x": other}) == Provenance(notes={"x": copy.copy(other)})
    of_tensors = [Provenance(target=torch.tensor([1, math.nan])) for _ in range(2)]
    assert of_tensors[0] == of_tensors[1] != Provenance(target=torch.ones(2))


def test_a_flow_is_solved_only_where_all_else_is_equal(explain):
    result, again = (explain("attention-flow", game="independent") for _ in range(2))
    other = dataclasses.replace(again, scores=again.scores + 1)
    assert result != other
    assert "solution" not in vars(result.joint_flow)
    assert result == again
    flow = result.joint_flow
    lower = GivenFlow(flow.value, flow.flow * 0.5, flow.cut)
    assert dataclasses.replace(result, joint_flow=lower) != result


# Where results come from


def test_pipelines_say_where_their_results_come_from(demo, tmp_path):
    solver = BarrierSolver()
    method = "generalized-attention-flow"
    made = demo.provenance(method, "positive", residual=0.5, solver=solver)
    assert (made.method, made.target) == (method, "positive")
    assert made.options == {"residual": 0.5, "solver": repr(solver)}
    assert made.model == demo.model.name_or_path
    assert made.model_sha256 == hash_of_model(demo.model)
    save_results(demo.explain(TEXTS, "attnlrp"), tmp_path / "x", made)
    assert load_results(tmp_path / "x").provenance == made
    with pytest.raises(ValueError, match="method='attnlpr' is unknown; give one of"):
        demo.provenance("attnlpr")


def test_a_hash_is_of_what_a_model_computes_by(demo, tmp_path):
    before = hash_of_model(demo.model)
    demo.model.save_pretrained(tmp_path)
    again = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path, attn_implementation="eager"
    )
    assert hash_of_model(again) == before
    with torch.no_grad():
        again.classifier.bias[0] = torch.nextafter(
            again.classifier.bias[0], torch.tensor(9.0)
        )
    assert hash_of_model(again) != before
    again = copy.deepcopy(demo.model)
    again.config.hidden_act = "relu"
    assert hash_of_model(again) != before
    assert hash_of_model(copy.deepcopy(demo.model).bfloat16()) != before


def test_the_hash_of_a_tokenizer_is_the_same_after_its_use(demo):
    tokenizer = copy.deepcopy(demo.tokenizer)
    before = hash_of_companion(tokenizer)
    tokenizer(TEXTS, padding=True, truncation=True, max_length=4)
    assert hash_of_companion(tokenizer) == before == hash_of_companion(demo.tokenizer)
    tokenizer.add_tokens(["gripping-funny"])
    assert hash_of_companion(tokenizer) != before


# Refusals


def torch_file() -> bytes:
    written = io.BytesIO()
    torch.save({"scores": torch.ones(2)}, written)
    return written.getvalue()


def picture(kind: str) -> bytes:
    written = io.BytesIO()
    Image.new("RGB", (4, 4)).save(written, kind)
    return written.getvalue()


OTHER_FILES = {
    "a zip archive, such as torch.save": torch_file(),
    "a pickle, which could run code": pickle.dumps({"scores": [1.0]}),
    "a PNG picture": picture("PNG"),
    "a JPEG picture": picture("JPEG"),
    "JSON": b'{"scores": [1.0, 2.0]}',
    "HTML or XML": b"<html></html>",
    "a safetensors file of something else": None,
    "it is empty, was cut off": b"",
    "no whole file of results": b"text, score\nfunny, 2.5\n",
}


@pytest.mark.parametrize("what", OTHER_FILES)
def test_other_files_are_refused_by_what_they_are(tmp_path, what):
    path, content = tmp_path / "x.safetensors", OTHER_FILES[what]
    if content is None:
        save_file({"weight": torch.ones(2)}, path, {"format": "pt"})
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=what) as error:
        Explanation.load(path)
    assert str(path) in str(error.value)
    assert "give a file that save() or save_results() wrote" in str(error.value)


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not there; give a file that save"):
        Explanation.load(tmp_path / "x")
    with pytest.raises(FileNotFoundError, match="is a folder; give a file that save"):
        Explanation.load(tmp_path)
    for wrong in (3, None, ["x"]):
        with pytest.raises(ValueError, match=r"path=.*; give the name of a file"):
            load_results(wrong)
        with pytest.raises(ValueError, match=r"path=.*; give the name of a file"):
            save_results(TextAttribution("a", ("a",), (1.0,), "x", None, "x"), wrong)


def test_a_file_of_another_kind_or_of_several_is_refused(stored, tmp_path):
    (tmp_path / "x").write_bytes(stored)
    with pytest.raises(
        ValueError, match=r"kind TextAttribution and no Explanation; give it to Text"
    ):
        Explanation.load(tmp_path / "x")
    with pytest.raises(ValueError, match=r"holds 2 results.*storage\.load_results"):
        TextAttribution.load(tmp_path / "x")


def test_a_file_of_a_later_format_version_is_refused(stored, tmp_path):
    def later(content):
        content |= {"format_version": FORMAT_VERSION + 1, "package_version": "9.1"}
        content["results"] = "of a shape that nobody knows"

    path = changed(tmp_path / "x", stored, later)
    with pytest.raises(
        ValueError, match=r"version 2, written by captum-attnflow '9\.1'.*reads up to 1"
    ):
        load_results(path)


def test_what_a_later_package_adds_is_ignored(stored, tmp_path):
    def add(content):
        content["signature"] = {"class": "Unknown"}
        content["provenance"]["fields"]["author"] = {"class": "Unknown"}
        for result in content["results"]:
            result["fields"]["mood"] = {"class": "Unknown", "fields": {}}

    path = changed(tmp_path / "x", stored, add)
    (tmp_path / "y").write_bytes(stored)
    before = load_results(tmp_path / "y")
    assert differences("", before, load_results(path)) == []


def test_every_cut_of_a_file_is_refused(stored, tmp_path):
    path = tmp_path / "x"
    for length in range(0, len(stored), 7):
        path.write_bytes(stored[:length])
        with pytest.raises(ValueError, match="cut off or changed"):
            load_results(path)


def places(tree: object, path: tuple = ()) -> list[tuple]:
    """Every place in a tree of JSON, by the keys that lead there."""
    inner = tree.items() if isinstance(tree, dict) else ()
    inner = enumerate(tree) if isinstance(tree, list) else inner
    return [path, *(p for key, each in inner for p in places(each, (*path, key)))]


OTHER_VALUES = (
    *(None, True, -1, 1e300, "x", [], {}, [[]], {"tensor": "missing"}),
    *({"floats": [0, 10**6]}, {"floats": [-1, 1]}, {"float": "1"}, {"tuple": 3}),
    *({"mapping": [[[], 1]]}, {"mapping": [1]}, {"class": "system", "fields": {}}),
    *({"class": "Patch", "fields": {}}, {"class": "TokenSequence", "fields": {}}),
    {"class": "Propagation", "fields": {"counts": {"mapping": []}}},
)


@pytest.mark.parametrize("kind", ["texts", "tensors"])
def test_a_file_changed_anywhere_is_refused_in_words_or_read(
    explain, stored, tmp_path, kind
):
    if kind == "tensors":
        explain("relevance-flow").save(tmp_path / "x")
        stored = (tmp_path / "x").read_bytes()
    read = []
    changed(tmp_path / "y", stored, read.append)
    pairs = itertools.product(places(read[0])[1:], OTHER_VALUES)
    refused = []
    for (*before, last), value in random.Random(0).sample(list(pairs), 400):

        def change(content, before=before, last=last, value=value):
            for key in before:
                content = content[key]
            content[last] = value

        path = changed(tmp_path / "y", stored, change)
        try:
            results = load_results(path).results
        except ValueError as error:
            refused.append(str(error))
        else:
            assert {type(each).__name__ for each in results} <= set(KINDS)
    assert len(refused) > 100
    assert [e for e in refused if "no whole file" not in e and "version" not in e] == []


def test_every_changed_byte_is_refused(explain, stored, tmp_path):
    explain("relevance-flow").save(tmp_path / "x")
    path, draws = tmp_path / "y", random.Random(0)
    for written in (stored, (tmp_path / "x").read_bytes()):
        n_header = 8 + int.from_bytes(written[:8], "little")
        keys = [written.index(b'"captum_attnflow_sha256"'), written.index(b"checksum")]
        places = {
            *(key + i for key in keys for i in range(100)),
            *draws.choices(range(n_header), k=400),
            *draws.choices(range(n_header, len(written)), k=400),
        }
        for place in places:
            damaged = bytearray(written)
            damaged[place] ^= 1 << draws.randrange(8)
            path.write_bytes(damaged)
            with pytest.raises(ValueError, match=re.escape(str(path))):
                load_results(path)


def test_a_changed_number_is_refused_with_what_to_do(explain, tmp_path):
    path = tmp_path / "x"
    explain("relevance-flow").save(path)
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(
        ValueError, match=r"x' is no whole .*its sha256 checksum says; copy it anew, or"
    ):
        Explanation.load(path)


def test_a_text_may_look_like_the_place_of_the_checksum(tmp_path):
    text = '"captum_attnflow_sha256":"' + "0" * 64 + '"'
    result = TextAttribution(text, (text,), (1.0,), text, None, text)
    result.save(tmp_path / "x", Provenance(notes={text: text}))
    assert TextAttribution.load(tmp_path / "x") == result


def test_nothing_but_results_is_made_of_a_file(stored, tmp_path):
    def call(content):
        content["results"] = [
            {"class": "Popen", "module": "subprocess", "fields": {"args": "true"}}
        ]

    path = changed(tmp_path / "x", stored, call)
    with pytest.raises(ValueError, match="'Popen' is no class of results"):
        load_results(path)


def test_what_no_file_can_hold_is_refused(tmp_path):
    text = TextAttribution("a", ("a",), (1.0,), "x", None, "x")
    generated = GenerationExplanation(
        ["a", "b"], torch.ones(1, 2), torch.zeros(1), torch.ones(1)
    )
    wrong = {
        "are none; give a result": [],
        "kinds GenerationExplanation, TextAttribution": [text, generated],
        "has a str; give": "text",
        "has a Tensor; give": torch.ones(2),
        r"index=<object.*is an object, which a file": dataclasses.replace(
            text, index=object()
        ),
        r"results\.0\.scores is a sparse tensor; give": dataclasses.replace(
            generated, scores=torch.eye(2).to_sparse()
        ),
        r"tensor of torch\.complex64; give": dataclasses.replace(
            generated, scores=torch.ones(1, 2, dtype=torch.complex64)
        ),
    }
    for message, results in wrong.items():
        with pytest.raises(ValueError, match=message):
            save_results(results, tmp_path / "x")
    with pytest.raises(ValueError, match=r"provenance=.*; give a Provenance"):
        text.save(tmp_path / "x", {"method": "slalom"})
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_ends_in_another_format_is_refused(tmp_path):
    text = TextAttribution("a", ("a",), (1.0,), "x", None, "x")
    for name in ("x.json", "x.pt", "x.html"):
        with pytest.raises(ValueError, match=rf"{name}' ends in .*\.safetensors$"):
            text.save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []
    for name in ("x", "x.safetensors", "X.SAFETENSORS"):
        text.save(tmp_path / name)
        assert TextAttribution.load(tmp_path / name) == text


def test_a_header_that_no_reader_takes_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr("captum_attnflow.storage._MAX_HEADER", 1000)
    text = TextAttribution("a" * 1000, ("a",), (1.0,), "x", None, "x")
    with pytest.raises(ValueError, match="save the results in several files"):
        text.save(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


# Interrupted writing


@pytest.mark.slow
def test_a_writer_that_is_killed_leaves_a_whole_file(tmp_path):
    path, moments = tmp_path / "x.safetensors", random.Random(0)
    large(0).save(path)
    for _ in range(3):
        # A warm one, so that a kill hits the writing and no import.
        writer = warm_processes().Process(target=alternate, args=(str(path),))
        before = path.stat().st_ino
        writer.start()
        while path.stat().st_ino == before and writer.is_alive():
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.3))
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        assert writer.exitcode == -signal.SIGKILL
        read = GenerationExplanation.load(path)
        assert differences("", read, large(int(read.scores[0, 0]))) == []


def test_a_disk_that_is_full_leaves_the_old_file(stored, tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.write_bytes(stored)

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="x cannot be written: No space left"):
        TextAttribution("a", ("a",), (1.0,), "x", None, "x").save(path)
    assert path.read_bytes() == stored
    assert list(tmp_path.iterdir()) == [path]


def test_the_parts_of_a_result_compare_by_what_they_hold_too(demo):
    ids = demo.tokenizer("so funny", return_tensors="pt").input_ids
    method = GeneralizedAttentionFlow(lambda given: demo.model(given).logits)
    one, same = (method.explain(ids, target=1) for _ in range(2))
    assert one.network == same.network
    assert one.network is not same.network
    assert hash(one.network) == hash(same.network)
    assert one.joint_flow == same.joint_flow
    other = method.explain(ids, target=0)
    assert one.network != other.network
    assert one.joint_flow != other.joint_flow
