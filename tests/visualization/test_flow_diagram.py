from __future__ import annotations

import io
import json
import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from models import encoder_decoder, token_ids
from pictures import HOSTILE, SCRIPTS, an_explanation, overlapping

from captum_attnflow import (
    AttentionRollout,
    Explanation,
    GeneralizedAttentionFlow,
    LayeredNetwork,
    RelevanceFlow,
    solve_flow,
)
from captum_attnflow.visualization import flow_diagram, html_page
from captum_attnflow.visualization.flow_diagram import FlowLayout


def edges(layout: FlowLayout) -> list[tuple[int, int, int]]:
    ends = (layout.layer, layout.tail, layout.head)
    return list(zip(*(column.tolist() for column in ends), strict=True))


def texts(figure, gid=None):
    [axes] = figure.axes
    return [text for text in axes.texts if gid is None or text.get_gid() == gid]


@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.5, 1.0])
def test_edges_below_the_threshold_are_left_out_and_counted(threshold):
    explanation = an_explanation(3, 6)
    layout = flow_diagram(explanation, threshold=threshold).layout
    flow = explanation.flow[0].tolist()
    kept, pruned, left_out = set(), 0, 0.0
    largest = max(max(map(max, layer)) for layer in flow)
    for layer in range(3):
        for head in range(6):
            for tail in range(6):
                amount = flow[layer][head][tail]
                if amount > 0 and amount >= threshold * largest:
                    kept.add((layer, tail, head))
                elif amount > 0:
                    pruned += 1
                    left_out += amount
    assert set(edges(layout)) == kept
    assert layout.n_pruned == pruned
    total = 3 * float(explanation.flow_value[0])
    assert 1 - layout.drawn_share.mean() == pytest.approx(left_out / total, abs=1e-6)


def test_the_picture_says_what_is_not_drawn():
    diagram = flow_diagram(an_explanation(3, 6), threshold=0.25)
    said = diagram.layout.pruning()
    n_edges = len(diagram.layout.layer) + diagram.layout.n_pruned
    assert said.startswith(
        f"{diagram.layout.n_pruned} of {n_edges} edges are below 25 %"
    )
    assert said in [text.get_text() for text in diagram.figure().texts]
    assert said in diagram.to_html()


def test_wider_edges_carry_more():
    explanation = an_explanation(3, 6)
    layout = flow_diagram(explanation).layout
    flows = [
        float(explanation.flow[0, layer, head, tail])
        for layer, tail, head in edges(layout)
    ]
    assert layout.width.tolist() == pytest.approx([flow / max(flows) for flow in flows])
    assert flows == sorted(flows)  # the widest are drawn last


def test_edges_relative_to_their_layer_show_the_main_ones_of_each():
    explanation = an_explanation(4, 8)
    layout = flow_diagram(explanation, threshold=0.5, relative_to="layer").layout
    flow = explanation.flow[0]
    assert set(edges(layout)) == {
        (layer, tail, head)
        for layer in range(4)
        for head in range(8)
        for tail in range(8)
        if flow[layer, head, tail] >= 0.5 * max(flow[layer].flatten().tolist())
    }
    assert {layer for layer, _, _ in edges(layout)} == set(range(4))
    assert [layout.width[layout.layer == layer].max() for layer in range(4)] == [
        1.0
    ] * 4


def test_tokens_send_their_scores():
    explanation = an_explanation(3, 6)
    layout = flow_diagram(explanation).layout
    assert layout.sent == pytest.approx(explanation.scores[0].numpy(), rel=1e-4)
    assert layout.node_flow.sum(1) == pytest.approx(layout.value, rel=1e-4)


@pytest.mark.parametrize("residual", [None, 0.5])
def test_the_cut_that_is_marked_certifies_the_flow(residual, demo):
    ids = demo.encode(["a gripping , funny film"])["input_ids"]
    flow = GeneralizedAttentionFlow(
        lambda ids: demo.model(ids).logits, residual=residual
    )
    explanation = flow.explain(ids, target=1)
    layout = flow_diagram(explanation, threshold=0).layout
    capacity = explanation.network.trim().cut_capacity(explanation.cut)
    assert layout.cut.capacity == pytest.approx(float(capacity[0]))
    assert layout.cut.capacity == pytest.approx(layout.value, rel=1e-4)
    marked = [e for e, cut in zip(edges(layout), layout.in_cut, strict=True) if cut]
    assert len(marked) == layout.cut.n_edges
    assert all(
        layout.cut.source_side[layer, tail]
        and not layout.cut.source_side[layer + 1, head]
        for layer, tail, head in marked
    )


def test_padding_is_left_out(demo):
    encoded = demo.encode(["dull", "a gripping , funny film"])
    ids, mask = encoded["input_ids"], encoded["attention_mask"]
    flow = GeneralizedAttentionFlow(
        lambda ids, mask: demo.model(ids, attention_mask=mask).logits
    )
    explanation = flow.explain(ids, target=1, additional_forward_args=(mask,))
    tokens = demo.tokenizer.convert_ids_to_tokens(ids[0])
    assert flow_diagram(explanation, tokens).layout.tokens == ("[CLS]", "dull", "[SEP]")


def test_an_encoder_decoder_has_the_columns_of_both_sides():
    model = encoder_decoder("T5")
    flow = GeneralizedAttentionFlow(
        lambda encoder, decoder: model(
            input_ids=encoder, decoder_input_ids=decoder
        ).logits[:, 1]
    )
    explanation = flow.explain((token_ids(1, 3), token_ids(1, 3)), target=3)
    tokens = ["from", "the", "encoder", "start", "second", "unread"]
    diagram = flow_diagram(explanation, tokens)
    assert diagram.layout.tokens == tuple(tokens[:-1])
    assert diagram.layout.sent == pytest.approx(explanation.scores[0, :5], rel=1e-4)


def test_a_rollout_is_drawn_without_a_cut(demo):
    ids = demo.encode(["a gripping , funny film"])["input_ids"]
    rollout = AttentionRollout(lambda ids: demo.model(ids).logits)
    diagram = flow_diagram(rollout.explain(ids, target=1))
    assert diagram.layout.cut is None
    assert "no minimum cut" in diagram.to_html()
    assert "severed by" not in diagram.to_html()
    assert diagram.figure().legends == []


def test_what_has_no_joint_flow_is_refused_with_the_way_to_one(demo):
    ids = demo.encode(["a gripping , funny film"])["input_ids"]
    flow = RelevanceFlow(lambda ids: demo.model(ids).logits)
    explanation = flow.explain(ids, demo.tokenizer.mask_token_id, target=1)
    with pytest.raises(ValueError, match="no joint flow") as refusal:
        flow_diagram(explanation)
    assert "solve_flow(explanation.network)" in str(refusal.value)
    solution = solve_flow(explanation.network)
    joint = replace(
        explanation,
        flow=solution.flow,
        cut=solution.cut,
        flow_value=solution.value,
    )
    assert flow_diagram(joint).layout.cut.capacity == pytest.approx(
        float(solution.value[0]), rel=1e-4
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tokens": ["a"]}, "1 tokens were given for 3 positions"),
        ({"threshold": 1.5}, "threshold=1.5"),
        ({"example": 1}, "example=1 is not in a batch of 1"),
        ({"example": -1}, "example=-1"),
        ({"relative_to": "row"}, "'network', 'layer'"),
    ],
)
def test_bad_input_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        flow_diagram(an_explanation(1, 3), **options)


@pytest.mark.parametrize("kind", ["png", "pdf", "svg"])
@pytest.mark.parametrize("tokens", [SCRIPTS, ["one"], ["映" * 40, "b"]])
def test_every_script_is_drawn_without_a_warning(tokens, kind):
    diagram = flow_diagram(an_explanation(2, len(tokens)), tokens)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        diagram.figure().savefig(io.BytesIO(), format=kind)


def test_a_character_that_no_font_has_is_drawn_as_its_escape():
    [label] = texts(
        flow_diagram(an_explanation(1, 1), ["\U0010ffff"]).figure(), "token"
    )
    assert label.get_text() == r"\U0010ffff"


@pytest.mark.parametrize("n_tokens", [2, 12, 24, 64, 200])
def test_labels_do_not_overlap(n_tokens):
    tokens = [f"word{'m' * (place % 9)}" for place in range(n_tokens)]
    figure = flow_diagram(an_explanation(2, n_tokens), tokens).figure()
    labels = texts(figure, "token")
    assert [label.get_text() for label in labels] == tokens
    assert overlapping(figure, [*figure.texts, *texts(figure)]) == []


@pytest.mark.parametrize("dpi", [72, 100, 110, 200])  # hinting widens letters
@pytest.mark.parametrize("n_tokens", [1, 7, 10, 40])
def test_all_text_is_on_the_sheet(n_tokens, dpi):
    tokens = ["m" * 30 if n_tokens != 7 else "m"] * n_tokens
    figure = flow_diagram(an_explanation(2, n_tokens), tokens).figure()
    figure.set_dpi(dpi)
    [legend] = figure.legends
    written = [*texts(figure), *figure.texts, *legend.get_texts()]
    assert overlapping(figure, written) == []
    for text in written:
        box = text.get_window_extent()
        assert figure.bbox.count_contains(box.corners()) == 4, text.get_text()


def test_a_flow_of_nothing_is_drawn():
    network = LayeredNetwork(
        torch.zeros(1, 2, 3, 3),
        torch.ones(1, 3, dtype=torch.bool),
        torch.ones(1, 3, dtype=torch.bool),
    )
    nothing = Explanation(
        scores=torch.zeros(1, 3),
        flow_value=torch.zeros(1),
        network=network,
        flow=torch.zeros(1, 2, 3, 3),
        cut=torch.zeros(1, 3, 3, dtype=torch.bool),
    )
    diagram = flow_diagram(nothing, ["a", "b", "c"])
    assert "flow value 0" in diagram.to_html()
    diagram.figure().savefig(io.BytesIO())
    assert diagram.layout.tokens == ("a", "b", "c")
    assert np.isfinite(diagram.layout.width).all()


def test_no_token_ends_the_pages_data():
    tokens = ["</script><script>alert(1)</script>", "<!--", HOSTILE]
    page = html_page(flow_diagram(an_explanation(1, 3), tokens))
    assert "alert" not in re.sub(r'id="data">.*?</script>', "", page, flags=re.DOTALL)
    data = re.search(r'id="data">(.*?)</script>', page, re.DOTALL).group(1)
    assert json.loads(data)["tokens"] == tokens


def test_a_diagram_among_other_pictures_is_refused():
    diagram = flow_diagram(an_explanation(1, 2))
    with pytest.raises(ValueError, match="a page of its own"):
        html_page([diagram, diagram])


def test_the_page_is_its_own_document():
    page = html_page(flow_diagram(an_explanation(1, 2)))
    assert page.startswith("<!DOCTYPE html>")
    assert page.count("<html") == 1
    assert not re.search(r'(src|href)="(?!data:)', page)


def test_what_is_no_explanation_of_a_flow_is_refused():
    with pytest.raises(ValueError, match=r"a dict has no flow to draw.*slalom_plane"):
        flow_diagram({"values": torch.ones(1, 4)})
