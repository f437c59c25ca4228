from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
import transformers
from models import vision_classifier
from PIL import Image
from typer.testing import CliRunner

from captum_attnflow import AttnLRP, GeneralizedAttentionFlow
from captum_attnflow.cli import app
from captum_attnflow.pipelines.image_classification import (
    ImageClassifier,
    ImageOverlays,
)
from captum_attnflow.pipelines.methods import IMAGE_METHODS
from captum_attnflow.show import html_page, terminal_text

LABELS = {0: "cat", 1: "$dog$ <b>"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A classifier and its image processor, as save_pretrained writes them."""
    folder = tmp_path_factory.mktemp("vit")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = vision_classifier().float()
    model.config.id2label = LABELS
    model.save_pretrained(folder)
    size = {"height": 32, "width": 32}
    # Before transformers named a processor by its backend, this one needed no
    # torchvision.
    by_pillow = getattr(transformers, "ViTImageProcessorPil", None)
    processor = by_pillow or transformers.ViTImageProcessor
    processor(size=size).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def classifier(folder):
    return ImageClassifier.load(str(folder))


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    file = tmp_path_factory.mktemp("images") / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), "uint8")
    Image.fromarray(pixels).save(file)
    return file


@pytest.fixture
def run(folder):
    runner = CliRunner()
    task = ["explain", "--task", "image-classification"]
    return lambda *arguments, model=folder, **options: runner.invoke(
        app,
        [*task, *([] if model is None else ["--model", str(model)])]
        + [str(argument) for argument in arguments],
        **options,
    )


class TestClassifier:
    def test_patches_have_the_scores_of_their_tokens(self, classifier, photo):
        [result] = classifier.explain([str(photo)], "generalized-attention-flow")
        pixels = torch.from_numpy(np.array(Image.open(photo))).permute(2, 0, 1) / 255
        torch.testing.assert_close(result.pixels, pixels)
        normalized = (2 * pixels - 1)[None]
        logits = classifier.model(normalized).logits[0].detach().softmax(-1)
        assert result.predicted == LABELS[int(logits.argmax())]
        assert result.probability == pytest.approx(float(logits.max()), rel=1e-5)
        scores = GeneralizedAttentionFlow(lambda x: classifier.model(x).logits).explain(
            normalized, target=int(logits.argmax())
        )
        expected = scores.scores[0, 1:].reshape(4, 4)
        assert len(result.patches) == 16
        for patch in result.patches:
            left, top, right, bottom = patch.box
            assert (right - left, bottom - top) == (8, 8)
            score = float(expected[top // 8, left // 8])
            assert patch.score == pytest.approx(score, rel=1e-4, abs=1e-7)
        per_patch = torch.nn.functional.avg_pool2d(result.attributions, 8) * 64
        torch.testing.assert_close(
            per_patch.sum(0).double(), expected, rtol=1e-4, atol=1e-6
        )

    def test_a_target_is_a_label_or_an_index(self, classifier, photo):
        [by_label] = classifier.explain([str(photo)], target="cat")
        [by_index] = classifier.explain([str(photo)], target="0")
        assert by_label.target == by_index.target == "cat"
        assert by_label.patches == by_index.patches

    @pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
    def test_every_colour_mode_is_read(self, classifier, photo, tmp_path, mode):
        file = tmp_path / "image.tiff"
        Image.open(photo).convert(mode).save(file)
        [result] = classifier.explain([str(file)])
        assert result.pixels.shape == (3, 32, 32)

    @pytest.mark.parametrize("ending", ["png", "tiff"])
    def test_16_bits_are_scaled_to_8(self, classifier, photo, tmp_path, ending):
        levels = np.array(Image.open(photo).convert("L"))
        plain, deep = tmp_path / "plain.png", tmp_path / f"deep.{ending}"
        Image.fromarray(levels).save(plain)
        Image.fromarray(levels.astype("uint16") * 257).save(deep)
        [expected], [result] = (classifier.explain([str(f)]) for f in (plain, deep))
        torch.testing.assert_close(result.pixels, expected.pixels)

    @pytest.mark.parametrize("dtype", ["int32", "float32"])
    def test_numbers_of_no_known_range_are_refused(self, classifier, tmp_path, dtype):
        file = tmp_path / "numbers.tiff"
        Image.fromarray(np.ones((32, 32), dtype)).save(file)
        with pytest.raises(ValueError, match=r"numbers\.tiff.*no known range"):
            classifier.explain([str(file)])

    def test_a_turned_photo_is_set_upright(self, classifier, photo, tmp_path):
        file, turned = tmp_path / "turned.png", Image.open(photo).rotate(90)
        exif = turned.getexif()
        exif[0x0112] = 6  # shown after a turn to the right
        turned.save(file, exif=exif)
        [upright], [result] = (classifier.explain([str(f)]) for f in (photo, file))
        torch.testing.assert_close(result.pixels, upright.pixels)

    def test_images_of_any_size_are_resized(self, classifier, photo, tmp_path):
        file = tmp_path / "wide.png"
        Image.open(photo).resize((90, 50)).save(file)
        results = classifier.explain([str(photo), str(file)])
        assert [len(result.patches) for result in results] == [16, 16]


class TestFiles:
    def test_no_format_that_runs_other_programs_is_opened(
        self, classifier, tmp_path, monkeypatch
    ):
        file = tmp_path / "drawing.png"
        Image.new("RGB", (32, 32)).save(file, "EPS")
        monkeypatch.setattr(
            "PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("it ran")
        )
        with pytest.raises(ValueError, match=r"drawing\.png.*one of the formats BMP"):
            classifier.explain([str(file)])

    def test_a_small_file_of_many_pixels_is_refused_before_they_are_made(
        self, classifier, tmp_path, monkeypatch
    ):
        file = tmp_path / "bomb.png"
        Image.new("1", (8192, 8193)).save(file)
        assert file.stat().st_size < 20_000
        monkeypatch.setattr(
            "PIL.ImageFile.ImageFile.load", lambda *_: pytest.fail("it was decoded")
        )
        with pytest.raises(ValueError, match=r"bomb\.png.*8192 x 8193.*67,108,864"):
            classifier.explain([str(file)])

    @pytest.mark.parametrize("ending", ["png", "jpeg", "gif", "tiff", "webp", "bmp"])
    def test_a_file_cut_off_is_named(self, classifier, photo, tmp_path, ending):
        whole, file = tmp_path / f"whole.{ending}", tmp_path / f"cut.{ending}"
        Image.open(photo).save(whole)
        [result] = classifier.explain([str(whole)])
        assert len(result.patches) == 16
        content = whole.read_bytes()
        for n_bytes in (0, 10, 60, len(content) // 2):
            file.write_bytes(content[:n_bytes])
            with pytest.raises(ValueError, match=rf"cut\.{ending}' is no image that"):
                classifier.explain([str(file)])

    def test_a_bare_string_is_refused(self, classifier, photo):
        for given in (str(photo), photo):
            with pytest.raises(ValueError, match="give a list of files"):
                classifier.explain(given)


class TestPictures:
    @pytest.mark.parametrize("method", ["generalized-attention-flow", "relevance-flow"])
    def test_the_overlay_shows_the_attributions(self, classifier, photo, method):
        results = classifier.explain([str(photo)] * 2, method)
        figure = ImageOverlays(tuple(results)).figure()
        assert len(figure.axes) == 4 + 2  # with a colour bar for each overlay
        shown, overlay = (axis.images[-1].get_array() for axis in figure.axes[:2])
        picture = results[0].pixels.permute(1, 2, 0).numpy()
        assert np.abs(np.asarray(shown) - picture).max() <= 1e-6
        patches = results[0].patches
        by_score = sorted(patches, key=lambda patch: patch.score)
        lowest, highest = (patch.box for patch in (by_score[0], by_score[-1]))
        overlay = np.asarray(overlay)
        assert overlay[highest[1], highest[0]] > overlay[lowest[1], lowest[0]]

    def test_a_page_escapes_labels_and_files(self, classifier, photo, tmp_path):
        file = tmp_path / "<i>.png"
        file.write_bytes(photo.read_bytes())
        [result] = classifier.explain([str(file)], target=1)
        page = html_page(result)
        assert "&lt;i&gt;.png" in page
        assert "<i>" not in page
        assert page.count("data:image/png;base64,") == 1
        assert "://" not in page.split("base64,")[0]

    def test_a_terminal_shows_rows_of_patches(self, classifier, photo):
        [result] = classifier.explain([str(photo)], "generalized-attention-flow")
        lines = terminal_text(result).plain.splitlines()
        assert result.predicted in lines[0]
        assert [len(line) for line in lines[1:5]] == [8] * 4
        best = max(result.patches, key=lambda patch: patch.score)
        left, top, right, bottom = best.box
        assert lines[1 + top // 8][left // 4 : right // 4] == "██"
        assert lines[5].startswith(f"highest: x {left}-{right}, y {top}-{bottom}: ")

    def test_relevance_of_pixels_is_summed_by_patch(self, classifier, photo):
        [result] = classifier.explain([str(photo)], "attnlrp")
        pixels = classifier._process(Image.open(photo))
        target = [*LABELS.values()].index(result.target)
        relevance = AttnLRP(classifier._logits).attribute(pixels, target=target)[0]
        for patch in result.patches:
            left, top, right, bottom = patch.box
            expected = float(relevance[:, top:bottom, left:right].sum())
            assert patch.score == pytest.approx(expected, rel=1e-4, abs=1e-7)

    def test_a_terminal_tells_the_sign_without_colours(self, classifier, photo):
        [result] = classifier.explain([str(photo)], "relevance-flow")
        grid = terminal_text(result).plain.splitlines()[1:5]
        cells = [row[i : i + 2] for row in grid for i in range(0, 8, 2)]
        against = [patch.score < 0 for patch in result.patches]
        assert any(against)
        assert [cell.endswith("-") for cell in cells] == against


class TestCommand:
    @pytest.mark.parametrize("method", IMAGE_METHODS)
    def test_json_gives_one_object_per_image(self, run, photo, method):
        result = run(photo, photo, "--json", "--method", method)
        first, second = map(json.loads, result.stdout.splitlines())
        assert first == second
        assert first["image"] == str(photo)
        assert first["predicted"] in LABELS.values()
        assert first["patches"][5]["box"] == [8, 8, 16, 16]

    def test_pictures_are_written(self, run, photo, tmp_path):
        picture, page = tmp_path / "picture.png", tmp_path / "page.html"
        result = run(photo, "--output", picture, "--html", page)
        assert result.exit_code == 0, result.stderr
        assert "highest: " in result.stdout
        assert Image.open(picture).size == (800, 400)
        assert "</html>" in page.read_text()

    def test_a_failed_write_leaves_the_old_picture(
        self, run, photo, tmp_path, monkeypatch
    ):
        files = [tmp_path / "picture.png", tmp_path / "page.html"]
        for file in files:
            file.write_text("old")

        def full(_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.fsync", full)
        for option, file in zip(("--output", "--html"), files, strict=True):
            result = run(photo, option, file)
            assert result.exit_code == 2
            assert f"{file} cannot be written: No space left" in result.stderr
            assert file.read_text() == "old"
        assert sorted(tmp_path.iterdir()) == sorted(files)

    def test_a_name_that_is_no_utf8_is_read(self, run, photo, tmp_path):
        file = tmp_path / "caf\udce9.png"
        file.write_bytes(photo.read_bytes())
        result = run(file, "--html", tmp_path / "page.html")
        assert result.exit_code == 0, result.stderr
        assert "caf\\udce9.png" in (tmp_path / "page.html").read_text()

    def test_files_may_come_from_standard_input(self, run, photo):
        assert run(input=f"{photo}\n").stdout == run(photo).stdout

    def test_bad_input_is_an_error_that_names_it(self, run, photo, tmp_path):
        text = tmp_path / "text.txt"
        text.write_text("no image")
        for arguments, message in [
            (["/no/such.png"], "there is no image file"),
            ([text], "text.txt' is no image that can be read"),
            ([photo, "--method", "slalom"], "method='slalom' does not serve this task"),
            ([photo, "--strategy", "eff"], "no option 'strategy'"),
            ([photo, "--target", "bird"], "target='bird' is unknown"),
            ([photo, "--output", "/no/such/a.png"], "there is no folder"),
            (
                [photo, "--output", tmp_path / "a.unknown"],
                "a.unknown ends in no",
            ),
            ([photo, "--output", tmp_path / "a"], "one of .eps"),
            ([photo, "--output", tmp_path], "is a folder; give a file in it"),
            ([photo, "--output", "/dev/full"], "ends in no format"),
            ([""], "the image file is empty"),
        ]:
            result = run(*arguments)
            assert result.exit_code == 2
            assert message in result.stderr
            assert "Traceback" not in result.output

    def test_a_model_must_be_given(self, run, photo):
        result = run(photo, model=None)
        assert result.exit_code == 2
        assert "give --model" in result.stderr

    def test_a_text_model_is_no_image_classifier(self, run, photo):
        from captum_attnflow.demo import DEMO_MODEL_PATH

        result = run(photo, model=DEMO_MODEL_PATH)
        assert result.exit_code == 2
        assert "could not be loaded as an image classifier" in result.stderr
        assert "preprocessor_config.json" in result.stderr

    def test_texts_have_no_picture_and_other_tasks_no_name(self):
        for arguments, message in [
            (["dull", "--output", "a.png"], "text-classification has no picture"),
            (["dull", "--task", "tables"], "task='tables' is unknown"),
        ]:
            result = CliRunner().invoke(app, ["explain", *arguments])
            assert result.exit_code == 2
            assert message in result.stderr


def of_problem(classifier, problem, n_labels=2):
    """The classifier with another problem, whose labels are a, b, ..."""
    model = copy.deepcopy(classifier.model)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model.classifier = torch.nn.Linear(model.config.hidden_size, n_labels)
    model.config.id2label = dict(enumerate("abcdef"[:n_labels]))
    model.config.problem_type = problem
    return ImageClassifier(model, classifier.processor)


def logits_of(classifier, photo):
    pixels = classifier.processor(Image.open(photo), return_tensors="pt").pixel_values
    return classifier.model(pixels).logits[0].detach()


def test_every_label_above_the_threshold_is_explained(classifier, photo):
    several = of_problem(classifier, "multi_label_classification", 6)
    logits = logits_of(several, photo)
    above = (logits > 0).nonzero()[:, 0].tolist()
    assert 1 < len(above) < 6
    results = several.explain([str(photo)])
    assert [result.target for result in results] == ["abcdef"[i] for i in above]
    for index, result in zip(above, results, strict=True):
        probability = float(logits[index].sigmoid())
        assert result.probability == pytest.approx(probability, rel=1e-4)
        assert result.predicted == result.target
        [asked] = several.explain([str(photo)], target=index)
        assert result.patches == asked.patches


def test_a_value_is_no_probability(classifier, photo):
    regression = of_problem(classifier, None, 1)
    [result] = regression.explain([str(photo)])
    assert result.probability is None
    assert result.value == pytest.approx(float(logits_of(regression, photo)), rel=1e-4)
    assert f"a {result.value:.3f}" in terminal_text(result).plain
    assert f"a {result.value:.3f}" in html_page(result)


@pytest.mark.parametrize("part", ["model", "processor"])
def test_a_pipeline_is_no_part_of_it(classifier, part):
    pipeline = transformers.pipeline(
        "image-classification",
        model=classifier.model,
        image_processor=classifier.processor,
    )
    parts = {"model": classifier.model, "processor": classifier.processor}
    with pytest.raises(ValueError, match=r"ImageClassifier\.load\(pipeline\)"):
        ImageClassifier(**{**parts, part: pipeline})


def test_a_pipeline_is_its_model_and_image_processor(classifier, photo):
    pipeline = transformers.pipeline(
        "image-classification",
        model=classifier.model,
        image_processor=classifier.processor,
    )
    loaded = ImageClassifier.load(pipeline)
    assert loaded.processor is pipeline.image_processor
    [expected] = classifier.explain([str(photo)], "attnlrp")
    [result] = loaded.explain([str(photo)], "attnlrp")
    assert result.prediction == expected.prediction
    assert result.patches == expected.patches


def test_patches_that_overlap_cannot_be_shown(classifier, photo, monkeypatch):
    convolution = classifier.model.vit.embeddings.patch_embeddings.projection
    monkeypatch.setattr(convolution, "padding", (1, 1))
    monkeypatch.setattr(convolution, "stride", (7, 7))
    with pytest.raises(ValueError, match="patches that do not overlap"):
        classifier.explain([str(photo)])
