"""Pictures of attributions, over Captum's helpers."""

from captum_attnflow.captum_text import visualize_text
from captum_attnflow.visualization.flow_diagram import FlowDiagram, flow_diagram
from captum_attnflow.visualization.page import html_page, save_html
from captum_attnflow.visualization.terminal import terminal_text
from captum_attnflow.visualization.text import text_records
from captum_attnflow.visualization.words import merge_words

__all__ = [
    "FlowDiagram",
    "flow_diagram",
    "html_page",
    "merge_words",
    "save_html",
    "terminal_text",
    "text_records",
    "visualize_text",
]
