from __future__ import annotations

import base64
import html
import io
import json
import re
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection
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
from captum_attnflow.show.flow_diagram.layout import GATHERED_WIDEST


def edges(layout: FlowLayout) -> list[tuple[int, int, int]]:
    ends = (layout.streams.layer, layout.streams.tail, layout.streams.head)
    return list(zip(*(column.tolist() for column in ends), strict=True))


def page_data(diagram: FlowDiagram) -> dict[str, Any]:
    data = re.search(r'id="data">(.*?)</script>', diagram.to_html(), re.DOTALL)
    return json.loads(data.group(1))


def texts(figure, gid=None):
    [axes] = figure.axes
    return [text for text in axes.texts if gid is None or text.get_gid() == gid]


def plain_sums(flow: list, column: list[int], threshold: float) -> dict[str, Any]:
    """Gather a flow in plain loops: what the edges and the rest must be.

    ``column`` gives every token's column, -1 for the others.
    """
    amounts: dict[tuple[int, int, int, bool], float] = {}
    for layer, rows in enumerate(flow):
        for head, row in enumerate(rows):
            for tail, amount in enumerate(row):
                if amount != 0:
                    edge = (layer, column[tail], column[head], amount < 0)
                    amounts[edge] = amounts.get(edge, 0.0) + amount
    largest = max(
        (abs(amount) for edge, amount in amounts.items() if -1 not in edge[1:3]),
        default=max(map(abs, amounts.values())),
    )
    edges, rest, thin = {}, [[0.0, 0.0] for _ in flow], 0
    for edge, amount in amounts.items():
        layer, tail, head, negative = edge
        if abs(amount) < threshold * largest or tail == head == -1:
            rest[layer][negative] += amount
            thin += -1 not in (tail, head)
        else:
            edges[edge] = amount
    return {"edges": edges, "rest": rest, "thin": thin, "largest": largest}


def drawn_edges(layout: FlowLayout) -> dict[tuple[int, int, int, bool], float]:
    streams = layout.streams
    last = len(layout.positions)  # the column of the others

    def named(columns: Any) -> list[int]:
        return [-1 if column == last else column for column in columns.tolist()]

    edges = zip(
        streams.layer.tolist(),
        named(streams.tail),
        named(streams.head),
        streams.apart.tolist(),
        strict=True,
    )
    return dict(zip(edges, streams.amount.tolist(), strict=True))


@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("n_tokens", [1, 2, 4, 12])
@pytest.mark.parametrize("signed", [False, True])
def test_edges_and_rest_are_sums_of_the_flow(signed, n_tokens, threshold):
    explanation = a_relevance_flow(3, 7) if signed else an_explanation(3, 7)
    layout = flow_diagram(
        explanation, threshold=threshold, n_tokens=n_tokens, cut=False
    ).layout
    column = [-1] * 7
    for number, position in enumerate(layout.positions.tolist()):
        column[position] = number
    flow = explanation.flow[0]
    flow = flow if signed else flow.clamp_min(0)
    expected = plain_sums(flow.tolist(), column, threshold)
    found = drawn_edges(layout)
    assert found == pytest.approx(expected["edges"], rel=1e-9)
    assert layout.streams.rest == pytest.approx(np.array(expected["rest"]), rel=1e-9)
    assert layout.streams.n_thin == expected["thin"]
    assert layout.streams.largest == pytest.approx(expected["largest"])


@pytest.mark.parametrize("relative_to", ["network", "layer"])
@pytest.mark.parametrize("n_tokens", [1, 5, 12, 40])
@pytest.mark.parametrize(
    ("signed", "cut"), [(False, False), (False, True), (True, False)]
)
def test_what_is_drawn_and_what_is_gathered_are_the_whole(
    signed, n_tokens, relative_to, cut
):
    explanation = a_relevance_flow(4, 20) if signed else an_explanation(4, 20)
    layout = flow_diagram(
        explanation,
        threshold=0.2,
        n_tokens=n_tokens,
        relative_to=relative_to,
        cut=cut,
    ).layout
    streams, flow = layout.streams, explanation.flow[0].numpy()
    assert streams.rest.any()
    for layer in range(4):
        drawn = streams.amount[streams.layer == layer]
        whole = np.concatenate([drawn, streams.rest[layer]])
        assert whole.sum() == pytest.approx(flow[layer].sum(), abs=1e-6)
        assert np.abs(whole).sum() == pytest.approx(np.abs(flow[layer]).sum(), rel=1e-6)
        single = drawn[~streams.gathered[streams.layer == layer]]
        share = 1 - np.abs(single).sum() / np.abs(flow[layer]).sum()
        assert streams.gathered_share[layer] == pytest.approx(share, abs=1e-6)
    assert layout.sent.sum() == pytest.approx(
        float(explanation.scores[0].sum()), rel=1e-4
    )
    assert layout.node_flow.sum(1) == pytest.approx(
        np.array([*flow.sum((1, 2)), flow[-1].sum()]), rel=1e-4
    )


def test_a_long_text_shows_the_largest_scores_and_the_read_out_in_their_order():
    explanation = an_explanation(3, 60)
    scores = explanation.scores[0].clone()
    read_out = 0
    assert scores[read_out] < scores.sort(descending=True).values[11]
    layout = flow_diagram(explanation, [f"t{place}" for place in range(60)]).layout
    others = [place for place in range(60) if place != read_out]
    largest = sorted(others, key=lambda place: -scores[place])[:11]
    assert layout.positions.tolist() == sorted([read_out, *largest])
    assert layout.tokens == (
        *(f"t{place}" for place in layout.positions),
        "48 others",
    )
    assert layout.n_others == 48
    rest = [place for place in others if place not in largest]
    assert layout.sent[-1] == pytest.approx(float(scores[rest].sum()), rel=1e-4)


def test_a_column_of_one_other_is_that_token():
    assert flow_diagram(an_explanation(2, 13)).layout.n_others == 0
    assert flow_diagram(an_explanation(2, 14)).layout.n_others == 2
    assert flow_diagram(an_explanation(2, 14), n_tokens=14).layout.n_others == 0


def test_gathered_streams_are_never_drawn_wider_than_the_legend_says():
    layout = flow_diagram(an_explanation(3, 80)).layout
    streams = layout.streams
    assert streams.gathered.any()
    carried = streams.amount[streams.gathered].max() / streams.largest[0]
    assert carried > GATHERED_WIDEST  # else nothing is tested
    assert streams.width.max() == GATHERED_WIDEST
    assert streams.width[~streams.gathered].max() == 1.0
    assert max(lane.width.max() for lane in layout.lanes) == GATHERED_WIDEST


@pytest.mark.parametrize("n_tokens", [12, 60, 200])
@pytest.mark.parametrize("signed", [False, True])
def test_a_figure_is_a_page_wide_at_any_length(signed, n_tokens):
    make = a_relevance_flow if signed else an_explanation
    tokens = [f"word{'m' * (place % 9)}" for place in range(n_tokens)]
    figure = flow_diagram(make(12, n_tokens), tokens).figure()
    width, height = figure.get_size_inches()
    assert 6 <= width <= 8.5
    assert height <= 12
    written = [*texts(figure), *figure.texts]
    written += [text for key in figure.legends for text in key.get_texts()]
    assert overlapping(figure, written) == []
    for text in written:
        box = text.get_window_extent()
        assert figure.bbox.count_contains(box.corners()) == 4, text.get_text()


def test_the_picture_says_what_is_gathered():
    diagram = flow_diagram(an_explanation(3, 30), threshold=0.25, n_tokens=4)
    [said] = diagram.layout.details()
    assert said.startswith("Drawn: 4 tokens, the read-out and")
    assert "The column “26 others” gathers the rest" in said
    assert f"{diagram.layout.streams.n_thin} edges below 25 %" in said
    assert said in " ".join(text.get_text() for text in diagram.figure().texts)
    assert said in diagram.to_html()


def test_the_title_names_method_target_value_and_read_out():
    explanation = an_explanation(3, 6)
    diagram = flow_diagram(
        explanation, list("abcdef"), method="AttentionFlow", target="a <b>"
    )
    value = f"{float(explanation.flow_value[0]):.4g}"
    title = f"AttentionFlow for “a <b>”: {value} flows from 6 tokens to “a”"
    assert diagram.layout.title() == title
    assert title in " ".join(text.get_text() for text in diagram.figure().texts)
    assert f"<h1>{html.escape(title)}</h1>" in diagram.to_html()
    assert flow_diagram(explanation).layout.title().startswith("Flow: ")


def test_a_word_is_no_place_to_fill():
    tokens = ["@script@", "@title@"]
    diagram = flow_diagram(an_explanation(1, 2), tokens, target="@data@")
    assert page_data(diagram)["tokens"] == tokens
    assert "for “@data@”" in diagram.to_html()


def test_a_title_of_any_length_stays_on_the_sheet():
    for target in ("m" * 500, "word " * 90, "映" * 60):
        figure = flow_diagram(an_explanation(1, 3), target=target).figure()
        assert overlapping(figure, figure.texts) == []
        for text in figure.texts:
            box = text.get_window_extent()
            assert figure.bbox.count_contains(box.corners()) == 4, text.get_text()


def test_the_legend_says_what_widths_are():
    diagram = flow_diagram(an_explanation(3, 6))
    [legend] = diagram.figure().legends
    words = [text.get_text() for text in legend.get_texts()]
    largest = diagram.layout.streams.largest[0]
    assert words[:2] == [f"flow {largest:.2g}", f"flow {largest / 4:.2g}"]
    widths = [line.get_linewidth() for line in legend.get_lines()[:2]]
    assert widths[0] == pytest.approx(4 * widths[1])
    [axes] = diagram.figure().axes
    assert max(lines_of(axes)[-1].get_linewidths()) == pytest.approx(widths[0])
    by_layer = flow_diagram(an_explanation(3, 6), relative_to="layer")
    assert "largest flow of its layer" in by_layer.to_html()
    for word in words:
        assert html.escape(word) in diagram.to_html()


def lines_of(axes) -> list[LineCollection]:
    return [c for c in axes.collections if isinstance(c, LineCollection)]


def test_wider_edges_carry_more():
    explanation = an_explanation(3, 6)
    layout = flow_diagram(explanation).layout
    flows = [
        float(explanation.flow[0, layer, head, tail])
        for layer, tail, head in edges(layout)
    ]
    assert layout.streams.width.tolist() == pytest.approx(
        [flow / max(flows) for flow in flows]
    )
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
    streams = layout.streams
    widest = [streams.width[streams.layer == layer].max() for layer in range(4)]
    assert widest == [1.0] * 4


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
    layout = flow_diagram(explanation, threshold=0, cut=True).layout
    capacity = explanation.network.trim().cut_capacity(explanation.cut)
    assert layout.cut.capacity == pytest.approx(float(capacity[0]))
    assert layout.cut.capacity == pytest.approx(layout.value, rel=1e-4)
    marked = [
        e for e, cut in zip(edges(layout), layout.streams.apart, strict=True) if cut
    ]
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


def test_a_cut_is_drawn_only_when_it_is_asked_for():
    explanation = an_explanation(3, 20)
    plain = flow_diagram(explanation)
    assert plain.layout.cut is None
    assert not plain.layout.streams.apart.any()
    assert not re.search("minimum cut|'s side", "".join(words_of(plain)))
    marked = flow_diagram(explanation, cut=True)
    capacity = explanation.network.trim().cut_capacity(explanation.cut)
    assert marked.layout.cut.capacity == pytest.approx(float(capacity[0]))
    streams = marked.layout.streams
    severed = streams.amount[streams.apart].sum() + streams.rest[:, 1].sum()
    assert severed == pytest.approx(float(explanation.flow_value[0]), rel=1e-4)
    words = "".join(words_of(marked))
    assert "The minimum cut severs" in words
    assert "severed by the minimum cut" in words


def words_of(diagram: FlowDiagram) -> list[str]:
    """What a figure says, and a page outside its data, style and script."""
    figure = diagram.figure()
    said = [text.get_text() for text in [*figure.texts, *texts(figure)]]
    said += [text.get_text() for text in figure.legends[0].get_texts()]
    markup = re.sub(
        "<(style|script).*?</(style|script)>", "", diagram.to_html(), flags=re.S
    )
    return [*said, re.sub("<[^>]*>", "", markup)]


def test_a_rollout_is_drawn_and_has_no_cut(demo):
    ids = demo.encode(["a gripping , funny film"])["input_ids"]
    rollout = AttentionRollout(lambda ids: demo.model(ids).logits)
    explanation = rollout.explain(ids, target=1)
    assert flow_diagram(explanation).layout.value == pytest.approx(1.0)
    with pytest.raises(ValueError, match=r"cut=True.*no minimum cut; give cut=False"):
        flow_diagram(explanation, cut=True)


def test_what_has_no_joint_flow_is_refused_with_the_way_to_one(demo):
    ids = demo.encode(["a gripping , funny film"])["input_ids"]
    flow = RelevanceFlow(lambda ids: demo.model(ids).logits, flow="maximum")
    explanation = flow.explain(ids, demo.tokenizer.mask_token_id, target=1)
    with pytest.raises(ValueError, match="no joint flow") as refusal:
        flow_diagram(explanation)
    assert "solve_flow(explanation.network)" in str(refusal.value)
    solution = solve_flow(explanation.network)
    joint = replace(explanation, joint_flow=solution)
    assert flow_diagram(joint, cut=True).layout.cut.capacity == pytest.approx(
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
        streams = layout.streams
        assert streams.width == pytest.approx(np.abs(amounts) / largest)
        assert streams.apart.tolist() == [amount < 0 for amount in amounts]
        assert streams.apart.any()
        assert not streams.apart.all()
        assert streams.n_thin == len(flow) - len(wide)

    @pytest.mark.parametrize("n_tokens", [2, 12])
    def test_every_layer_and_the_direct_edges_sum_to_the_output(self, n_tokens):
        explanation = a_relevance_flow(3, 20)
        layout = flow_diagram(explanation, n_tokens=n_tokens).layout
        output = float(explanation.flow_value[0])
        assert layout.sent.sum() == pytest.approx(output)
        rest, direct = layout.lanes
        assert direct.name == "direct edges"
        past = explanation.direct[0].numpy()
        assert direct.amount == pytest.approx(
            np.array([[past[past > 0].sum(), past[past < 0].sum()]] * 3)
        )
        read_out = layout.node_flow[-1].sum()
        assert read_out + direct.amount[-1].sum() == pytest.approx(output)
        first = layout.streams.layer == 0
        drawn = layout.streams.amount[first].sum() + rest.amount[0].sum()
        assert drawn + direct.amount[0].sum() == pytest.approx(output)

    def test_opposite_signs_are_gathered_apart(self):
        layout = flow_diagram(a_relevance_flow(3, 40), n_tokens=2).layout
        assert (layout.streams.rest[:, 0] > 0).all()
        assert (layout.streams.rest[:, 1] < 0).all()
        gathered = list(
            zip(*(np.array(edges(layout))[layout.streams.gathered]).T, strict=True)
        )
        assert len(gathered) > len(set(gathered))  # both signs between two columns

    @pytest.mark.parametrize("direct", [False, True])
    def test_numbers_below_tokens_and_the_title_tell_the_whole_output(self, direct):
        explanation = a_relevance_flow(3, 5, direct=direct)
        diagram = flow_diagram(explanation)
        scores = explanation.scores[0].tolist()
        written = {"score": tuple(with_minus(f"{score:+.2f}") for score in scores)}
        output = float(explanation.flow_value[0])
        words = [
            f"Relevance flow: the scores of 5 tokens sum to the output {output:.4g}"
        ]
        if direct:
            past = explanation.direct[0].tolist()
            written["of it direct"] = tuple(
                with_minus(f"{amount:+.2f}") for amount in past
            )
            layers = float(explanation.flow[0, 0].sum())
            words.append(f"{layers:.4g} goes through the layers")
            words.append(f"{sum(past):.4g} past them on direct edges")
        assert dict(diagram.layout.amounts) == written
        figure = diagram.figure()
        for name, numbers in written.items():
            drawn = [text.get_text() for text in texts(figure, name)]
            assert drawn == list(numbers)
            assert name in [text.get_text() for text in texts(figure)]
        page = page_data(diagram)
        assert page["amounts"] == [[name, [*row]] for name, row in written.items()]
        head = " ".join(text.get_text() for text in figure.texts)
        for word in map(with_minus, words):
            assert word in head
            assert word in diagram.to_html()

    def test_nothing_is_said_of_cuts_and_maximum_flows(self):
        for words in words_of(flow_diagram(a_relevance_flow(2, 4))):
            assert not re.search("minimum cut|maximum|'s side", words)

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
        assert page["edges"]["apart"] == layout.streams.apart.tolist()
        assert [lane["name"] for lane in page["lanes"]] == [
            "thin edges",
            "direct edges",
        ]

    def test_a_legend_tells_signs_apart_only_where_both_are(self):
        mixed = "".join(words_of(flow_diagram(a_relevance_flow(2, 4))))
        raising = "".join(
            words_of(flow_diagram(a_relevance_flow(2, 4, negative=False)))
        )
        assert mixed.count("raises the output") == 2
        assert mixed.count("lowers the output: dashed, diamonds") == 2
        assert "the output:" not in raising.replace("sum to the output", "")
        assert "lowers" not in raising

    def test_negative_edges_are_dashed_and_negative_nodes_are_diamonds(self):
        explanation = a_relevance_flow(2, 4)
        diagram = flow_diagram(explanation)
        [axes] = diagram.figure().axes
        lines = lines_of(axes)[-1]
        nodes = [c for c in axes.collections if c not in lines_of(axes)]
        dashes = [dash is not None for _, dash in lines.get_linestyle()]
        assert dashes == diagram.layout.streams.apart.tolist()
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
        layout = flow_diagram(solved, cut=True).layout
        assert layout.cut.capacity == pytest.approx(layout.value, rel=1e-4)
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
        ({"tokens": ["a"]}, "tokens holds 1 token for 3 positions"),
        ({"threshold": 1.5}, "threshold=1.5"),
        ({"example": 1}, "example=1 is not in a batch of 1"),
        ({"example": -1}, "example=-1"),
        ({"relative_to": "row"}, "'network', 'layer'"),
        ({"n_tokens": 0}, "n_tokens=0"),
        ({"n_tokens": 2.5}, "n_tokens=2.5"),
        ({"cut": "yes"}, "cut='yes'"),
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
    diagram = flow_diagram(an_explanation(2, n_tokens), tokens, n_tokens=200)
    figure = diagram.figure()
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
    assert "0 flows from 3 tokens" in diagram.to_html()
    diagram.figure().savefig(io.BytesIO())
    assert diagram.layout.tokens == ("a", "b", "c")
    assert np.isfinite(diagram.layout.streams.width).all()
    assert (diagram.layout.streams.gathered_share == 0).all()


def test_no_token_ends_the_pages_data():
    tokens = ["</script><script>alert(1)</script>", "<!--", HOSTILE]
    page = html_page(flow_diagram(an_explanation(1, 3), tokens))
    assert not re.search("<script>alert|<img", page)
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
