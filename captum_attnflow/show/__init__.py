"""Pictures of attributions, over Captum's helpers."""

from captum_attnflow.show.flow_diagram import FlowDiagram, flow_diagram
from captum_attnflow.show.image import image_overlay
from captum_attnflow.show.page import html_page, save_html, terminal_text
from captum_attnflow.show.slalom_plane import slalom_plane
from captum_attnflow.show.text import text_records, visualize_text
from captum_attnflow.show.token_matrix import TokenMatrix, token_matrix
from captum_attnflow.texts.units import merge_words

__all__ = [
    "FlowDiagram",
    "TokenMatrix",
    "flow_diagram",
    "html_page",
    "image_overlay",
    "merge_words",
    "save_html",
    "slalom_plane",
    "terminal_text",
    "text_records",
    "token_matrix",
    "visualize_text",
]
