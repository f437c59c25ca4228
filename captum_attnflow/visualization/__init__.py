"""Pictures of attributions, over Captum's helpers."""

from captum_attnflow.display.captum_text import visualize_text
from captum_attnflow.visualization.flow_diagram import FlowDiagram, flow_diagram
from captum_attnflow.visualization.image import image_overlay
from captum_attnflow.visualization.page import html_page, save_html
from captum_attnflow.visualization.slalom_plane import slalom_plane
from captum_attnflow.visualization.terminal import terminal_text
from captum_attnflow.visualization.text import text_records
from captum_attnflow.visualization.token_matrix import TokenMatrix, token_matrix
from captum_attnflow.visualization.words import merge_words

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
