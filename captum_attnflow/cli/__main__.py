"""``python -m captum_attnflow.cli``."""

from captum_attnflow.cli import app

app()
