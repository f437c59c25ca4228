from __future__ import annotations

import base64
import io
import json
import re
import warnings
from dataclasses import replace
from typing import Any

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
from captum_attnflow.explanation import ConservationDiagnostics, GivenFlow
from captum_attnflow.flow.scores import conserve
from captum_attnflow.show import flow_diagram, html_page
from captum_attnflow.show.flow_diagram import FlowDiagram, FlowLayout


def edges(layout: FlowLayout) -> list[tuple[int, int, int]]:
    ends = (layout.layer, layout.tail, layout.head)
    return list(zip(*(column.tolist() for column in ends), strict=True))


def page_data(diagram: FlowDiagram) -> dict[str, Any]:
    data = re.search(r'id="data">(.*?)</script>', diagram.to_html(), re.DOTALL)
    return json.loads(data.group(1))


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
    flow = RelevanceFlow(lambda ids: demo.model(ids).logits, flow="maximum")
    explanation = flow.explain(ids, demo.tokenizer.mask_token_id, target=1)
    with pytest.raises(ValueError, match="no joint flow") as refusal:
        flow_diagram(explanation)
    assert "solve_flow(explanation.network)" in str(refusal.value)
    solution = solve_flow(explanation.network)
    joint = replace(explanation, joint_flow=solution)
    assert flow_diagram(joint).layout.cut.capacity == pytest.approx(
        float(solution.value[0]), rel=1e-4
    )


def a_relevance_flow(
    n_layers: int, n_tokens: int, *, direct: bool = True, negative: bool = True
) -> Explanation:
    """A conserved flow of random messages, read out at the first position."""
    messages = torch.randn(1, n_layers, n_tokens, n_tokens, dtype=torch.float64) / 2
    past = torch.randn(1, n_tokens, dtype=torch.float64)
    read = torch.arange(n_tokens)[None] == 0
    if not negative:
        messages, past = messages.abs() / (9 * n_tokens), past.abs()
        read = torch.ones_like(read)
    read_out = 4.0 * read
    conserved = conserve(messages, read_out.double())
    scores = conserved.scores + past if direct else conserved.scores
    return Explanation(
        scores=scores,
        network=LayeredNetwork(conserved.flow.abs(), torch.ones_like(read), read),
        joint_flow=GivenFlow(scores.sum(1), conserved.flow),
        diagnostics=ConservationDiagnostics(conserved.imbalance, None),
        direct=past if direct else None,
    )


def with_minus(number: str) -> str:
    return number.replace("-", "\N{MINUS SIGN}")


def signed_edges(explanation: Explanation) -> dict[tuple[int, int, int], float]:
    """The flow of every edge (layer, tail, head) that has any."""
    return {
        (layer, tail, head): amount
        for layer, rows in enumerate(explanation.flow[0].tolist())
        for head, row in enumerate(rows)
        for tail, amount in enumerate(row)
        if amount != 0
    }


class TestRelevanceFlow:
    def test_widths_are_absolute_flows_and_signs_are_marked(self):
        explanation = a_relevance_flow(3, 5)
        flow = signed_edges(explanation)
        layout = flow_diagram(explanation, threshold=0.1).layout
        largest = max(map(abs, flow.values()))
        wide = {edge for edge, amount in flow.items() if abs(amount) >= largest / 10}
        assert set(edges(layout)) == wide
        amounts = [flow[edge] for edge in edges(layout)]
        assert layout.width == pytest.approx(np.abs(amounts) / largest)
        assert layout.negative.tolist() == [amount < 0 for amount in amounts]
        assert layout.negative.any()
        assert not layout.negative.all()
        assert layout.n_pruned == len(flow) - len(wide)
        for layer, share in enumerate(layout.drawn_share):
            whole = {edge for edge in flow if edge[0] == layer}
            drawn = sum(abs(flow[edge]) for edge in whole & wide)
            assert share == pytest.approx(
                drawn / sum(abs(flow[edge]) for edge in whole)
            )

    @pytest.mark.parametrize("direct", [False, True])
    def test_numbers_below_tokens_and_the_title_tell_the_whole_output(self, direct):
        explanation = a_relevance_flow(3, 5, direct=direct)
        diagram = flow_diagram(explanation)
        scores = explanation.scores[0].tolist()
        written = {"score": tuple(with_minus(f"{score:+.2f}") for score in scores)}
        output = float(explanation.flow_value[0])
        words = [f"relevance flow of 5 tokens sums to the output {output:.4g}"]
        if direct:
            past = explanation.direct[0].tolist()
            written["of it direct"] = tuple(
                with_minus(f"{amount:+.2f}") for amount in past
            )
            layers = float(explanation.flow[0, 0].sum())
            words.append(f"{layers:.4g} through the layers")
            words.append(f"{sum(past):.4g} on direct edges")
        assert dict(diagram.layout.amounts) == written
        figure = diagram.figure()
        for name, numbers in written.items():
            drawn = [text.get_text() for text in texts(figure, name)]
            assert drawn == list(numbers)
            assert name in [text.get_text() for text in texts(figure)]
        page = page_data(diagram)
        assert page["amounts"] == [[name, [*row]] for name, row in written.items()]
        for word in map(with_minus, words):
            assert word in diagram.layout.summary()
            assert word in figure.texts[0].get_text()
            assert word in diagram.to_html()

    def test_nothing_is_said_of_cuts_and_maximum_flows(self):
        diagram = flow_diagram(a_relevance_flow(2, 4))
        figure = diagram.figure()
        said = [text.get_text() for text in [*figure.texts, *texts(figure)]]
        said += [text.get_text() for text in figure.legends[0].get_texts()]
        markup = re.sub(
            "<(style|script).*?</(style|script)>", "", diagram.to_html(), flags=re.S
        )
        for words in (*said, markup):
            assert not re.search("cut|maximum|side", words)

    def test_the_page_has_signed_flows_and_direct_edges(self):
        explanation = a_relevance_flow(3, 5)
        layout = flow_diagram(explanation).layout
        page = page_data(flow_diagram(explanation))
        flow = np.frombuffer(base64.b64decode(page["flow"]), "<f4")
        assert flow == pytest.approx(explanation.flow[0].flatten().numpy(), rel=1e-6)
        assert page["signed"] is True
        assert page["direct"] == pytest.approx(explanation.direct[0].tolist())
        assert page["value"] == pytest.approx(float(explanation.flow_value[0]))
        assert page["sourceSide"] is None
        assert len(page["edges"]) == len(layout.width)

    def test_a_legend_tells_signs_apart_only_where_both_are(self):
        mixed = flow_diagram(a_relevance_flow(2, 4))
        raising = flow_diagram(a_relevance_flow(2, 4, negative=False))
        assert "lowers the output: dashed" in mixed.to_html()
        assert "lowers the output" not in raising.to_html()
        [legend] = mixed.figure().legends
        words = [text.get_text() for text in legend.get_texts()]
        assert words[0] == "raises the output"
        assert words[1].startswith("lowers the output: dashed edges")
        assert raising.figure().legends == []

    def test_negative_edges_are_dashed_and_negative_nodes_are_diamonds(self):
        explanation = a_relevance_flow(2, 4)
        diagram = flow_diagram(explanation)
        [axes] = diagram.figure().axes
        lines, *nodes = axes.collections
        dashes = [dash is not None for _, dash in lines.get_linestyle()]
        assert dashes == diagram.layout.negative.tolist()
        below = int((diagram.layout.node_flow < 0).sum())
        assert below
        assert [len(kind.get_offsets()) for kind in nodes] == [12 - below, below]
        corners = [len(kind.get_paths()[0].vertices) for kind in nodes]
        assert corners[0] > corners[1]

    def test_a_token_with_a_direct_edge_alone_is_a_column(self):
        explanation = a_relevance_flow(2, 4)
        flow = explanation.flow.clone()
        flow[..., 2:, :] = flow[..., 2:] = 0
        direct = torch.tensor([[0.5, 0.0, -0.25, 0.0]], dtype=torch.float64)
        alone = replace(
            explanation,
            joint_flow=GivenFlow(explanation.flow_value, flow),
            direct=direct,
            network=replace(explanation.network, capacity=flow.abs()),
        )
        layout = flow_diagram(alone, ["a", "b", "c", "d"]).layout
        assert layout.tokens == ("a", "b", "c")
        assert layout.sent[2] == -0.25

    def test_padding_is_left_out_and_scores_are_the_methods_own(self, demo):
        encoded = demo.encode(["dull", "a gripping , funny film"])
        ids, mask = encoded["input_ids"], encoded["attention_mask"]
        method = RelevanceFlow(
            lambda ids, mask: demo.model(ids, attention_mask=mask).logits
        )
        explanation = method.explain(
            ids, demo.tokenizer.mask_token_id, 1, additional_forward_args=(mask,)
        )
        tokens = demo.tokenizer.convert_ids_to_tokens(ids[0])
        layout = flow_diagram(explanation, tokens).layout
        assert layout.tokens == ("[CLS]", "dull", "[SEP]")
        assert layout.sent == pytest.approx(explanation.scores[0, :3].tolist())
        assert layout.sent.sum() == pytest.approx(layout.value)
        assert layout.node_flow[1:].sum(1) == pytest.approx(layout.node_flow[0].sum())

    def test_a_maximum_flow_on_its_network_is_drawn_as_one(self):
        explanation = a_relevance_flow(2, 4)
        solution = solve_flow(explanation.network)
        solved = replace(explanation, joint_flow=solution)
        layout = flow_diagram(solved).layout
        assert "minimum cut of" in layout.summary()
        assert (layout.direct, layout.amounts) == (None, ())

    @pytest.mark.parametrize("scale", [0.0, 1e-9, 1e-3, 1e3, 1e9])
    @pytest.mark.parametrize("n_tokens", [1, 7, 24, 64])
    def test_numbers_of_any_size_fit_the_sheet(self, n_tokens, scale):
        explanation = a_relevance_flow(2, n_tokens)
        scaled = replace(
            explanation,
            joint_flow=GivenFlow(
                explanation.flow_value * scale, explanation.flow * scale
            ),
            direct=explanation.direct * scale,
        )
        figure = flow_diagram(scaled, ["m"] * n_tokens).figure()
        written = [*texts(figure), *figure.texts]
        written += [text for key in figure.legends for text in key.get_texts()]
        assert overlapping(figure, written) == []
        for text in written:
            box = text.get_window_extent()
            assert figure.bbox.count_contains(box.corners()) == 4, text.get_text()


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
        network=network,
        joint_flow=GivenFlow(
            torch.zeros(1),
            torch.zeros(1, 2, 3, 3),
            torch.zeros(1, 3, 3, dtype=torch.bool),
        ),
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
    with pytest.raises(ValueError, match="a whole page"):
        html_page([diagram, diagram])


def test_the_page_is_its_own_document():
    page = html_page(flow_diagram(an_explanation(1, 2)))
    assert page.startswith("<!DOCTYPE html>")
    assert page.count("<html") == 1
    assert not re.search(r'(src|href)="(?!data:)', page)


def test_what_is_no_explanation_of_a_flow_is_refused():
    with pytest.raises(ValueError, match=r"a dict has no flow to draw.*slalom_plane"):
        flow_diagram({"values": torch.ones(1, 4)})
