from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from pictures import SCRIPTS, overlapping

from captum_attnflow import SLALOM
from captum_attnflow.show import slalom_plane
from captum_attnflow.show.slalom_plane import place_labels
from captum_attnflow.slalom.model import SlalomReading


def a_reading(points, error=0.1) -> SlalomReading:
    values, importances = zip(*points, strict=True) if len(points) else ((), ())
    return SlalomReading(
        values=tuple(values),
        importances=tuple(importances),
        value_standard_errors=(error,) * len(values),
        importance_standard_errors=(error,) * len(values),
        log_odds=1.0,
        predicted_log_odds=0.9,
        r2_short=None,
        r2_deletions=None,
    )


def labels(figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


@pytest.mark.parametrize("n_tokens", [1, 10, 60, 200])
@pytest.mark.parametrize("spread", [1.0, 0.02])
def test_labels_do_not_overlap(n_tokens, spread):
    draw = np.random.default_rng(n_tokens)
    points = draw.normal(size=(n_tokens, 2)) * spread
    points[: n_tokens // 2] *= 5
    figure = slalom_plane(a_reading(points), [f"word{at}" for at in range(n_tokens)])
    texts = figure.axes[0].texts
    assert len(texts) == n_tokens
    assert overlapping(figure, texts) == []


def test_labels_stay_in_the_axes():
    points = [(x, y) for x in (-1.0, 1.0) for y in (-1.0, 1.0)]
    figure = slalom_plane(a_reading(points), ["a rather long token"] * 4)
    assert overlapping(figure, figure.axes[0].texts) == []
    for text in figure.axes[0].texts:
        box = Text.get_window_extent(text)
        assert figure.axes[0].bbox.count_contains(box.corners()) == 4


def test_a_token_stands_at_its_value_and_importance():
    figure = slalom_plane(a_reading([(1.0, -2.0), (-3.0, 4.0)]), ["so", "dull"])
    [points] = [c for c in figure.axes[0].collections if len(c.get_offsets()) == 2]
    assert points.get_offsets().tolist() == [[-3.0, 4.0], [1.0, -2.0]]
    assert labels(figure) == ["dull", "so"]  # the heaviest first


def test_the_target_is_named_on_the_axis_and_in_the_title():
    reading = a_reading([(1.0, 2.0)])
    axes = slalom_plane(reading, ["so"], target="$a_{").axes[0]
    assert axes.get_xlabel() == "against “$a_{” ← value: log-odds → for “$a_{”"
    assert axes.get_title() == "log-odds of “$a_{”: +1.00, by SLALOM +0.90"
    FigureCanvasAgg(axes.figure).draw()
    unnamed = slalom_plane(reading, ["so"]).axes[0]
    assert unnamed.get_xlabel().startswith("against the target ←")


def test_a_label_away_from_its_point_has_a_line_to_it():
    points = np.random.default_rng(0).normal(size=(60, 2)) * 0.02
    points[:4] *= 20  # and the others are close together
    figure = slalom_plane(a_reading(points), [f"word{at}" for at in range(60)])
    axes = figure.axes[0]
    FigureCanvasAgg(figure).draw()
    far = 0
    for text in axes.texts:
        point = axes.transData.transform(text.xy)
        box = Text.get_window_extent(text)
        gap = np.maximum(np.maximum(box.min - point, point - box.max), 0)
        if np.hypot(*gap) < 10:
            continue
        far += 1
        line = text.arrow_patch.get_path().transformed(text.arrow_patch.get_transform())
        ends = line.vertices[[0, -1]]
        assert np.hypot(*(ends[1] - point)) < 6  # it ends at the point
        assert (ends[0] >= box.min - 8).all()
        assert (ends[0] <= box.max + 8).all()
    assert far > 5


def test_special_tokens_are_left_out_and_repeated_ones_counted():
    reading = a_reading([(1.0, 2.0), (1.0, 2.0), (None, None)])
    assert labels(slalom_plane(reading, ["so", "so", "[SEP]"])) == [
        "so \N{MULTIPLICATION SIGN}2"
    ]


def test_an_explanation_is_read_like_the_reading_of_its_example(demo):
    ids = demo.encode(["dull", "a gripping , funny film"])["input_ids"]
    slalom = SLALOM(lambda ids: demo.model(ids).logits, tokenizer=demo.tokenizer)
    explanation = slalom.explain(ids, target=1)
    tokens = demo.tokenizer.convert_ids_to_tokens(ids[1])
    found = labels(slalom_plane(explanation, tokens, example=1))
    with pytest.raises(ValueError, match="example=2 is not in a batch of 2"):
        slalom_plane(explanation, tokens, example=2)
    assert sorted(found) == sorted(["a", "gripping", ",", "funny", "film"])


def test_an_error_that_is_not_finite_does_not_hide_the_points():
    figure = slalom_plane(a_reading([(0.0, 0.0), (1.0, 1.0)], float("inf")), ["a", "b"])
    assert np.abs(figure.axes[0].get_xlim()).max() < 2


@pytest.mark.parametrize("tokens", [[], ["one"], SCRIPTS])
def test_every_script_is_drawn_without_a_warning(tokens):
    points = [(float(place), float(place)) for place in range(len(tokens))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = slalom_plane(a_reading(points), tokens)
        figure.savefig(io.BytesIO(), format="pdf")
        figure.savefig(io.BytesIO(), format="png")
    assert len(labels(figure)) == len(tokens)


def test_tokens_of_another_length_are_refused():
    with pytest.raises(ValueError, match="tokens holds 1 token for 2 positions"):
        slalom_plane(a_reading([(0.0, 0.0)] * 2), ["a"])


unit = st.floats(0, 300)


@settings(max_examples=25)
@given(st.lists(st.tuples(unit, unit), min_size=1, max_size=25))
def test_labels_cover_neither_each_other_nor_a_point(points):
    points = np.array(points)
    sizes = np.full(points.shape, (40.0, 10.0))
    area = np.array([0.0, 0.0, 300.0, 300.0])
    centres = place_labels(points, sizes, area, clear=2.0)
    apart = np.abs(centres[:, None] - centres) - (sizes[:, None] + sizes) / 2
    np.fill_diagonal(apart[..., 0], 1)
    assert (apart.max(-1) >= 0).all()
    clear = np.abs(centres[:, None] - points) - sizes[:, None] / 2
    assert (clear.max(-1) >= 2.0 - 1e-9).all()
    assert (centres == place_labels(points, sizes, area, clear=2.0)).all()
