"""Text that vision-language models generate, explained by image and text."""

from __future__ import annotations

import base64
import inspect
import io
import json
import re

import numpy as np
import pytest
import torch
import transformers
from models import encoder_decoder, numbers_tokenizer
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner
from vision_language import PROMPTS, vision_language_model

from captum_attnflow import (
    AttnLRP,
    GeneralizedAttentionFlow,
    GenerationAttribution,
    RelevanceFlow,
)
from captum_attnflow.cli import app
from captum_attnflow.pipelines.image_text_generation import (
    GeneratedFromImage,
    ImageTextGenerator,
)
from captum_attnflow.pipelines.image_tokens import find_image_tokens
from captum_attnflow.pipelines.provenance import hash_of_companion
from captum_attnflow.show import save_html
from captum_attnflow.texts import EmbeddedInput

METHODS = {
    "relevance-flow": RelevanceFlow,
    "generalized-attention-flow": GeneralizedAttentionFlow,
    "attnlrp": AttnLRP,
}
ANSWER = "a cat"
every_model = pytest.mark.parametrize("name", PROMPTS)


@pytest.fixture(scope="module")
def made():
    found = {}

    def make(name):
        if name not in found:
            found[name] = ImageTextGenerator(*vision_language_model(name))
        return found[name]

    return make


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 255, (16, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)


def processed(generator, name, photo):
    return generator.processor(
        images=Image.open(photo), text=PROMPTS[name], return_tensors="pt"
    )


def embeddings(generator, given, answer):
    """Merge image and text by hand, and make the positions and masks that they need."""
    model, ids = generator.model, torch.cat([given["input_ids"], answer], 1)
    kind = model.config.model_type
    beside = {}
    with torch.no_grad():
        if "image_grid_thw" in given:
            grid = given["image_grid_thw"]
            features = model.get_image_features(given["pixel_values"], grid)
            types = {"mm_token_type_ids": (ids == model.config.image_token_id).int()}
            find_positions = model.model.get_rope_index
            taken = inspect.signature(find_positions).parameters
            beside["position_ids"], _ = find_positions(
                ids,
                image_grid_thw=grid,
                **{name: value for name, value in types.items() if name in taken},
            )
        else:
            features = model.get_image_features(given["pixel_values"])
        found = features.pooler_output
        found = torch.cat([*found]) if isinstance(found, (list, tuple)) else found
        embedded = model.get_input_embeddings()(ids)
        embedded[ids == model.config.image_token_id] = found.flatten(0, -2)
    if kind == "gemma3":
        n = ids.shape[1]
        image = ids[0] == model.config.image_token_id
        seen = torch.ones(n, n).tril().bool() | (image[:, None] & image)
        distance = torch.arange(n)[:, None] - torch.arange(n)
        near = seen & (distance < model.config.text_config.sliding_window)
        beside["attention_mask"] = {
            "full_attention": seen[None, None],
            "sliding_attention": near[None, None],
        }
    return embedded, beside


@every_model
@pytest.mark.parametrize("method", METHODS)
def test_scores_are_those_of_the_embeddings_merged_by_hand(made, photo, name, method):
    generator = made(name)
    (result,) = generator.explain([photo], [PROMPTS[name]], method, ANSWER)
    model, tokenizer = generator.model, generator.processor.tokenizer
    answer = torch.tensor([tokenizer.encode(ANSWER, add_special_tokens=False)])
    given = processed(generator, name, photo)
    embedded, beside = embeddings(generator, given, answer[:, :-1])
    n_prompt = given["input_ids"].shape[1]
    for step, token in enumerate(answer[0].tolist()):

        def forward(inputs, step=step):
            logits = model(inputs_embeds=inputs, **beside, use_cache=False).logits
            return logits[:, n_prompt - 1 + step]

        scores = METHODS[method](forward).attribute(embedded, target=token).sum(-1)[0]
        torch.testing.assert_close(
            result.explanation.scores[step, : len(scores)].float(),
            scores,
            atol=1e-5,
            rtol=1e-4,
        )
        assert result.explanation.scores[step].any()


@every_model
def test_relevance_sums_to_the_logits_of_the_model_itself(made, photo, name):
    generator = made(name)
    (result,) = generator.explain([photo], [PROMPTS[name]], target=ANSWER)
    tokenizer = generator.processor.tokenizer
    answer = tokenizer(ANSWER, return_tensors="pt").input_ids
    given = processed(generator, name, photo)
    n_prompt = given["input_ids"].shape[1]
    for kind, value in given.items():
        if value.shape == given["input_ids"].shape and kind != "input_ids":
            more = torch.full_like(answer, int(kind == "attention_mask"))
            given[kind] = torch.cat([value, more], 1)
    given["input_ids"] = torch.cat([given["input_ids"], answer], 1)
    with torch.no_grad():
        logits = generator.model(**given).logits[0, n_prompt - 1 : -1]
    expected = logits.gather(1, answer.T)[:, 0]
    explanation = result.explanation
    torch.testing.assert_close(explanation.scores.sum(1).float(), expected)
    torch.testing.assert_close(explanation.outputs.float(), expected)
    torch.testing.assert_close(
        explanation.log_probabilities, logits.log_softmax(-1).gather(1, answer.T)[:, 0]
    )


@every_model
def test_what_the_model_generates_is_explained(made, photo, name):
    generator = made(name)
    (result,) = generator.explain([photo], [PROMPTS[name]], max_new_tokens=3)
    given = processed(generator, name, photo)
    answer = generator.model.generate(**given, max_new_tokens=3, do_sample=False)
    generated = answer[0, given["input_ids"].shape[1] :]
    tokenizer = generator.processor.tokenizer
    names = tokenizer.convert_ids_to_tokens(generated.tolist())
    assert result.explanation.generated_tokens == names
    assert result.generated == tokenizer.decode(generated)
    parts = result.explanation.parts
    assert parts.count("image") == result.image_scores.shape[1] == len(result.boxes)
    assert set(parts) == {"prompt", "image", "generated"}


@every_model
def test_a_box_holds_the_pixels_that_its_token_depends_on_most(made, photo, name):
    generator = made(name)
    given = processed(generator, name, photo)
    config, images = generator.model.config, generator.processor.image_processor
    ids = given["input_ids"]
    n_tokens = int((ids == config.image_token_id).sum())
    found = find_image_tokens(config, images, given, n_tokens)
    height, width = found.pixels.shape[1:]
    covered = torch.zeros(height, width)
    for left, top, right, bottom in found.boxes:
        covered[top:bottom, left:right] += 1
    assert (covered == 1).all()

    def features(given):
        grid = {k: v for k, v in given.items() if k == "image_grid_thw"}
        with torch.no_grad():
            of = generator.model.get_image_features(given["pixel_values"], **grid)
        output = of.pooler_output
        return torch.cat([*output]) if isinstance(output, (list, tuple)) else output[0]

    before = features(given)
    for token, (left, top, right, bottom) in enumerate(found.boxes):
        noise = torch.zeros(3, height, width)
        noise[:, top:bottom, left:right] = 1.0
        if "image_grid_thw" in given:
            changed = images(
                [found.pixels + noise],
                do_rescale=False,
                do_resize=False,
                return_tensors="pt",
            )["pixel_values"]
        else:
            changed = given["pixel_values"] + noise
        moved = features({**given, "pixel_values": changed}) - before
        assert int(moved.norm(dim=-1).argmax()) == token


@pytest.mark.parametrize("name", ["Qwen2-VL", "Qwen2.5-VL"])
def test_pixels_of_flat_patches_are_the_image(made, photo, name):
    (result,) = made(name).explain([photo], [PROMPTS[name]], target=ANSWER)
    image = torch.tensor(np.asarray(Image.open(photo))).permute(2, 0, 1) / 255
    torch.testing.assert_close(result.pixels, image, atol=1e-5, rtol=0)


def test_pixels_of_one_picture_are_what_the_processor_resized(made, photo):
    generator = made("Gemma 3")
    (result,) = generator.explain([photo], [PROMPTS["Gemma 3"]], target=ANSWER)
    plain = generator.processor.image_processor(
        Image.open(photo), do_normalize=False, return_tensors="pt"
    )["pixel_values"][0]
    torch.testing.assert_close(result.pixels, plain, atol=1e-6, rtol=0)


@pytest.fixture(scope="module")
def result(made, photo):
    (found,) = made("LLaVA").explain([photo], [PROMPTS["LLaVA"]], target="a cat <b>")
    return found


class TestResult:
    def test_shares_of_image_and_text_are_those_of_absolute_scores(self, result):
        scores = result.explanation.scores.abs()
        image = scores[:, 2:18]
        assert result.explanation.parts[2:18] == ("image",) * 16
        torch.testing.assert_close(result.image_shares, image.sum(1) / scores.sum(1))
        share = 100 * float(image.sum() / scores.sum())
        assert result.shares == (
            f"image {share:.3g} % of the total, "
            f"text {100 - share:.3g} % (absolute scores)"
        )

    def test_pixels_sum_to_the_scores_of_the_image(self, result):
        assert result.attributions.shape == (3, 3, 16, 16)
        torch.testing.assert_close(
            result.attributions.sum((1, 2, 3)), result.image_scores.sum(1)
        )
        # The second token of the image is right of the first one.
        torch.testing.assert_close(
            result.attributions[0, :, :4, 4:8].sum(), result.image_scores[0, 1]
        )

    def test_the_matrix_has_one_column_for_the_image(self, result):
        matrix = result.matrix()
        assert matrix.input_tokens[:4] == ("USER", ":", "[image: 16 tokens]", "what")
        assert matrix.scores[0, 2] == pytest.approx(float(result.image_scores[0].sum()))
        assert matrix.n_prompt == len(PROMPTS["LLaVA"].split())

    def test_there_is_an_overlay_for_the_answer_and_for_each_token(self, result):
        titles = [axes.get_title() for axes in result.figure().axes]
        shown = [title for title in titles if title]
        assert shown[0] == "whole answer"
        assert [title.split()[:2] for title in shown[1:]] == [
            ["0:", "a"],
            ["1:", "cat"],
            ["2:", "<unk>"],
        ]
        alone = result.figure([1])
        assert [axes.get_title()[:6] for axes in alone.axes if axes.get_title()] == [
            "1: cat"
        ]
        with pytest.raises(ValueError, match=r"rows holds 3; give numbers from 0 to 2"):
            result.figure([3])

    def test_a_notebook_shows_overlays_and_the_matrix(self, result):
        html = result._repr_html_()
        assert html.count("data:image/png;base64,") == 1
        assert result.shares in html
        assert "[image: 16 tokens]" in html

    def test_a_notebook_says_how_many_overlays_it_leaves_out(self, made, photo):
        (long,) = made("LLaVA").explain(
            [photo], [PROMPTS["LLaVA"]], target=" ".join(["a", "cat"] * 6)
        )
        said = "the first 11 of 13 overlays; figure(rows) draws others"
        assert said in long._repr_html_()

    def test_a_name_of_a_file_is_escaped(self, result):
        named = GeneratedFromImage(
            **{
                **{n: getattr(result, n) for n in result.__dataclass_fields__},
                "image": "<script>.png",
            }
        )
        assert "<script>" not in named._repr_html_()

    def test_a_terminal_shows_shares_text_and_a_grid(self, result):
        console = Console(width=200, record=True, file=io.StringIO())
        console.print(result)
        lines = console.export_text().splitlines()
        assert result.shares in lines[0]
        start = lines.index("image, all rows summed:") + 1
        grid = [line[:8].ljust(8) for line in lines[start : start + 4]]
        assert all(re.fullmatch(r"[ ░▒▓█-]{8}", line) for line in grid)
        assert "4 x 4 image tokens, each a square of 4 pixels" in lines[start + 4]

    def test_it_is_read_from_a_file_as_it_was(self, result, tmp_path):
        result.save(tmp_path / "x")
        read = GeneratedFromImage.load(tmp_path / "x")
        assert torch.equal(read.explanation.scores, result.explanation.scores)
        assert torch.equal(read.pixels, result.pixels)
        assert (read.boxes, read.layout) == (result.boxes, result.layout)
        assert read.to_dict() == result.to_dict()

    def test_a_table_has_its_tokens_with_their_parts(self, result):
        rows = result.to_arrow().to_pylist()
        assert {row["image"] for row in rows} == {result.image}
        first = [row for row in rows if row["generated_start"] == 22]
        scores = [row["score"] for row in first if row["part"] == "image"]
        assert scores == result.image_scores[0].tolist()


def test_a_span_has_one_overlay_and_the_sum_of_its_tokens(made, photo):
    generator, prompts = made("Gemma 3"), [PROMPTS["Gemma 3"]]
    (each,) = generator.explain([photo], prompts, target="a cat dog")
    (whole,) = generator.explain(
        [photo], prompts, target="a cat dog", spans=["cat dog"]
    )
    assert whole.explanation.spans == ((1, 3),)
    torch.testing.assert_close(whole.image_scores[0], each.image_scores[1:].sum(0))
    assert sum(bool(axes.get_title()) for axes in whole.figure().axes) == 1


def test_a_contrast_is_the_difference_of_logits(made, photo):
    generator, prompts = made("Qwen2-VL"), [PROMPTS["Qwen2-VL"]]
    cat, dog = (
        generator.explain([photo], prompts, target=word)[0] for word in ("cat", "dog")
    )
    (contrast,) = generator.explain([photo], prompts, target="cat", against="dog")
    torch.testing.assert_close(
        contrast.explanation.scores[:, :-1].sum(1),
        (cat.explanation.scores - dog.explanation.scores)[:, :-1].sum(1),
        atol=1e-5,
        rtol=1e-5,
    )


@pytest.mark.parametrize("message", ["user", "dog"])
def test_a_message_that_the_template_holds_too_is_found(message, made, photo):
    (result,) = made("LLaVA").explain([photo], [message], target="a", chat=True)
    explanation = result.explanation
    parts = zip(explanation.tokens, explanation.parts, strict=True)
    of_text = [pair for pair in parts if pair[1] not in ("image", "generated")]
    assert of_text == [
        *(("user", "template"), (":", "template"), (message, "prompt")),
        *(("dog", "template"), (":", "template")),
    ]


def test_a_chat_tells_the_prompt_from_its_template(made, photo):
    generator = made("LLaVA")
    (result,) = generator.explain(
        [photo], ["what is this ?"], target="a", chat=True, system="two of them"
    )
    words = {"prompt": [], "system": [], "template": [], "image": [], "generated": []}
    explanation = result.explanation
    for token, part in zip(explanation.tokens, explanation.parts, strict=True):
        words[part].append(token)
    assert words == {
        "prompt": ["what", "is", "this", "?"],
        "system": ["two", "of", "them"],
        "template": ["system", ":", "user", ":", "dog", ":"],
        "image": ["<image>"] * 16,
        "generated": ["a"],
    }
    shown = result.explanation.matrix(left_out=["template"]).input_tokens
    assert shown[3] == "[image: 16 tokens]"


def test_a_saved_model_is_loaded_with_its_processor(tmp_path, made, photo):
    generator = made("LLaVA")
    generator.model.save_pretrained(tmp_path)
    generator.processor.save_pretrained(tmp_path)
    loaded = ImageTextGenerator.load(str(tmp_path))
    given = ([photo], [PROMPTS["LLaVA"]], "relevance-flow", ANSWER)
    (before,), (after,) = generator.explain(*given), loaded.explain(*given)
    assert torch.equal(before.explanation.scores, after.explanation.scores)
    assert loaded.provenance() == ImageTextGenerator.load(str(tmp_path)).provenance()


def test_the_hash_of_a_processor_is_that_of_its_parts():
    _, processor = vision_language_model("LLaVA")
    before = hash_of_companion(processor)
    assert hash_of_companion(vision_language_model("LLaVA")[1]) == before
    processor.tokenizer.add_tokens(["zebra"])
    with_zebra = hash_of_companion(processor)
    processor.image_processor.size = {"shortest_edge": 20}
    assert len({before, with_zebra, hash_of_companion(processor)}) == 3


def test_tokens_that_are_no_grid_have_shares_and_no_boxes(made, photo):
    (result,) = made("LLaVA with [CLS]").explain(
        [photo], [PROMPTS["LLaVA"]], target=ANSWER
    )
    assert result.image_scores.shape == (2, 17)
    assert result.boxes == ()
    assert result.layout.startswith("the 17 image tokens are not the 4 x 4 squares")
    assert "17 image tokens are not" in result._repr_html_()
    assert [axes.get_title() for axes in result.figure().axes if axes.images] == [""]
    with pytest.raises(ValueError, match=r"cannot be laid over .* take image_shares"):
        _ = result.attributions


def test_tiles_of_an_image_have_no_boxes(made):
    generator = made("LLaVA")
    found = find_image_tokens(
        generator.model.config,
        generator.processor.image_processor,
        {"pixel_values": torch.rand(1, 5, 3, 16, 16)},
        80,
    )
    assert (found.pixels, found.boxes) == (None, ())
    assert "cut into tiles" in found.layout


class TestRefusals:
    def test_features_that_enter_at_several_layers(self, made, photo):
        with pytest.raises(ValueError, match=r"deepstack_visual_embeds.*not supp"):
            made("Qwen3-VL").explain([photo], [PROMPTS["Qwen2-VL"]], target=ANSWER)

    def test_a_pass_whose_outputs_are_not_the_models_own(
        self, made, photo, monkeypatch
    ):
        generator = made("LLaVA")
        forward = generator.model.model.forward

        def other(*args, inputs_embeds=None, **kwargs):
            if inputs_embeds is not None:
                inputs_embeds = 2 * inputs_embeds
            return forward(*args, inputs_embeds=inputs_embeds, **kwargs)

        monkeypatch.setattr(generator.model.model, "forward", other)
        with pytest.raises(ValueError, match="gives other outputs when its decoder"):
            generator.explain([photo], [PROMPTS["LLaVA"]], target=ANSWER)

    def test_an_encoder_decoder(self, made):
        with pytest.raises(ValueError, match="is an encoder-decoder; give a model"):
            ImageTextGenerator(encoder_decoder("Bart"), made("LLaVA").processor)

    def test_a_tokenizer_alone(self, made):
        with pytest.raises(ValueError, match=r"without.*give the processor"):
            ImageTextGenerator(made("LLaVA").model, numbers_tokenizer())

    @pytest.mark.parametrize(
        ("prompt", "places"),
        [("what is this ?", "no place"), ("<image> <image> what", "2 places")],
    )
    def test_a_prompt_without_one_place_for_it(self, made, photo, prompt, places):
        with pytest.raises(ValueError, match=f"has {places}.*write '<image>' once"):
            made("LLaVA").explain([photo], [prompt])

    def test_a_place_for_the_image_in_a_chat(self, made, photo):
        with pytest.raises(ValueError, match=r"1 place for.*leave '<image>' out"):
            made("LLaVA").explain([photo], [PROMPTS["LLaVA"]], chat=True)

    def test_an_answer_that_holds_the_image(self, made, photo):
        with pytest.raises(ValueError, match=r"\[1\] are the image's placeholder"):
            made("LLaVA").explain([photo], [PROMPTS["LLaVA"]], target="a <image>")

    def test_a_chat_without_a_template(self, made, photo):
        with pytest.raises(ValueError, match="no chat template; give prompts with"):
            made("Gemma 3").explain([photo], ["what is this ?"], chat=True)

    def test_more_images_than_prompts(self, made, photo):
        with pytest.raises(ValueError, match="2 images and 1 prompts"):
            made("LLaVA").explain([photo, photo], [PROMPTS["LLaVA"]])

    def test_no_list_of_images(self, made, photo):
        with pytest.raises(ValueError, match="give a list of files"):
            made("LLaVA").explain(photo, [PROMPTS["LLaVA"]])

    def test_an_image_that_is_not_there(self, made):
        with pytest.raises(FileNotFoundError, match="there is no image file"):
            made("LLaVA").explain(["nowhere.png"], [PROMPTS["LLaVA"]])

    def test_more_tokens_than_positions(self, made, photo):
        with pytest.raises(ValueError, match=r"22 tokens with 200 .* 128 positions"):
            made("LLaVA").explain([photo], [PROMPTS["LLaVA"]], max_new_tokens=200)

    def test_a_method_that_deletes_tokens(self, made, photo):
        with pytest.raises(ValueError, match="'slalom' does not serve this task"):
            made("LLaVA").explain([photo], [PROMPTS["LLaVA"]], "slalom")

    def test_a_language_model_without_images(self, tmp_path, made):
        transformers.LlamaConfig().save_pretrained(tmp_path)
        made("LLaVA").processor.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="could not be loaded as a vision"):
            ImageTextGenerator.load(str(tmp_path))

    def test_embeddings_without_a_target(self, made):
        generator = made("LLaVA")
        tokenizer = generator.processor.tokenizer
        prompt = EmbeddedInput(torch.tensor([[3, 4]]), tokenizer, dict, ["image"] * 2)
        attribution = GenerationAttribution(RelevanceFlow(generator.model), tokenizer)
        with pytest.raises(ValueError, match="target=None; give the target"):
            attribution.explain(prompt)
        with pytest.raises(ValueError, match=r"\(1, 2\), and parts holds 1 part"):
            EmbeddedInput(torch.tensor([[3, 4]]), tokenizer, dict, ["image"])


@pytest.fixture(scope="module")
def folder(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    generator = made("LLaVA")
    generator.model.save_pretrained(folder)
    generator.processor.save_pretrained(folder)
    return str(folder)


class TestInTheShell:
    @pytest.fixture
    def run(self, folder):
        given = ("explain", "--task", "image-text-generation", "--model", folder)
        return lambda *arguments: CliRunner().invoke(app, [*given, *arguments])

    def test_an_image_and_a_prompt_are_explained(self, made, run, photo):
        asked = ("--prompt", PROMPTS["LLaVA"], "--target", ANSWER)
        found = json.loads(run(photo, *asked, "--json").stdout)
        [expected] = made("LLaVA").explain([photo], [PROMPTS["LLaVA"]], target=ANSWER)
        assert found["scores"] == expected.to_dict()["scores"]
        assert found["image"] == photo
        shown = run(photo, *asked).stdout
        assert expected.shares in shown

    def test_page_and_picture_are_written(self, run, photo, tmp_path):
        page, picture = tmp_path / "page.html", tmp_path / "picture.png"
        asked = ("--prompt", PROMPTS["LLaVA"], "--target", ANSWER)
        files = ("--html", str(page), "--output", str(picture))
        assert run(photo, *asked, *files).exit_code == 0
        assert "[image: " in page.read_text("utf-8")
        assert Image.open(picture).width > 300

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            ((), "no prompt was given"),
            (("--prompt", "what is this"), "no place for an image"),
        ],
    )
    def test_what_is_missing_is_said(self, given, words, run, photo):
        result = run(photo, *given)
        assert result.exit_code == 2
        assert words in " ".join(result.stderr.split())


@every_model
def test_the_page_has_one_entry_for_an_image(made, photo, name, tmp_path):
    """With the sum of its tokens' scores, among words, too."""
    (result,) = made(name).explain([photo], [PROMPTS[name]], target=ANSWER)
    save_html(result, tmp_path / "page.html")
    written = (tmp_path / "page.html").read_text("utf-8")
    [data] = re.findall(r'id="data">(.*?)</script>', written)
    [text] = json.loads(data)["texts"]
    explanation = result.explanation
    n_image = explanation.parts.count("image")
    assert n_image > 1
    assert text["parts"].count("image") == 1
    place = text["parts"].index("image")
    assert text["pieces"][place] == f"[image: {n_image} tokens]"
    assert len(text["pieces"]) == len(explanation.tokens) - n_image + 1
    assert text["given"] == explanation.n_given - n_image + 1
    scores = np.frombuffer(base64.b64decode(text["scores"]), "<f4")
    scores = scores.reshape(len(explanation.scores), -1)
    expected = result.image_scores.sum(1).numpy()
    np.testing.assert_allclose(scores[:, place], expected, rtol=1e-5)
    np.testing.assert_allclose(
        scores.sum(1), explanation.scores.sum(1).numpy(), rtol=1e-4
    )
    for starts in text["starts"].values():
        assert starts == sorted(set(starts))
        assert starts[0] == 0
        assert starts[-1] < len(text["pieces"])
