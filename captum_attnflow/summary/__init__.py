"""What the explanations of a whole data set look like."""

from captum_attnflow.summary.summarize import Summary, summarize

__all__ = ["Summary", "summarize"]
