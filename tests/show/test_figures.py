"""Figures made without pyplot show themselves in a notebook."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.pylabtools import select_figure_formats
from matplotlib.figure import Figure

from captum_attnflow.show import image_overlay, token_matrix
from captum_attnflow.show.figures import shown_in_notebooks


@pytest.fixture
def shell() -> Iterator[InteractiveShell]:
    """IPython as a fresh kernel has it, before pyplot starts a backend."""
    yield InteractiveShell.instance()
    InteractiveShell.clear_instance()


def drawn_figure() -> Figure:
    figure = Figure()
    figure.subplots()  # IPython shows nothing of an empty one
    return figure


def shown_formats(shell: InteractiveShell, figure: Figure) -> set[str]:
    data, _ = shell.display_formatter.format(figure)
    return set(data)


def test_ipython_alone_shows_no_picture_of_a_figure(shell):
    assert "image/png" not in shown_formats(shell, drawn_figure())


def test_figures_are_pictures_in_a_fresh_notebook(shell):
    matrix = token_matrix(torch.tensor([[1.0, 2.0]]), ["a", "b"], ["c"])
    assert "image/png" in shown_formats(shell, matrix.figure())


def test_overlays_are_pictures_in_a_fresh_notebook(shell):
    scores = torch.rand(1, 3, 4, 4)
    assert "image/png" in shown_formats(shell, image_overlay(scores, scores))


def test_the_format_that_a_notebook_has_chosen_stays(shell):
    select_figure_formats(shell, {"svg"})
    formats = shown_formats(shell, shown_in_notebooks(drawn_figure()))
    assert "image/svg+xml" in formats
    assert "image/png" not in formats


def test_figures_need_no_notebook():
    assert not InteractiveShell.initialized()
    figure = Figure()
    assert shown_in_notebooks(figure) is figure
