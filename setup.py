"""What pyproject.toml cannot say: the README, as an index page shows it."""

import re
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent


def readme_for_an_index() -> str:
    """Return the README with links that lead somewhere from any page.

    Its links are relative, as on a code host, in a checkout and in the documentation
    they then lead to the version that is read. An index page knows no such files.
    """
    settings = (ROOT / "pyproject.toml").read_text("utf-8")
    homepage = re.search(r'^Homepage = "(.*)"$', settings, re.MULTILINE)[1]
    readme = (ROOT / "README.md").read_text("utf-8")
    link = re.compile(r"(!?)(\[[^\]]*\])\((?!https?:|#)([^)\s]+)\)")

    def absolute(found: re.Match[str]) -> str:
        image, label, path = found.groups()
        if not (ROOT / path.partition("#")[0]).exists():  # such as code: x[0](y)
            return found[0]
        kind = "raw" if image else "blob"
        return f"{image}{label}({homepage}/{kind}/HEAD/{path})"

    return link.sub(absolute, readme)


setup(
    long_description=readme_for_an_index(),
    long_description_content_type="text/markdown",
)
