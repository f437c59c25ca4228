"""Prints which files and functions of the package one call of each method enters.

Run ``python tests/entered_files.py``, or with ``--files`` for their names. A reader
follows a call through these; ``tests/test_structure.py`` holds their numbers.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import captum_attnflow
from captum_attnflow.demo import load_demo_model

PACKAGE = Path(captum_attnflow.__file__).parent
METHODS = [name for name in captum_attnflow.__all__ if name.startswith("Layer")]
METHODS.remove("LayeredNetwork")


def entered(call: Callable[[], Any]) -> set[CodeType]:
    """Run a call and return the functions of the package that it enters."""
    codes: set[CodeType] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_name != "<module>":
            codes.add(frame.f_code)

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return {code for code in codes if PACKAGE in Path(code.co_filename).parents}


def files_of(codes: set[CodeType]) -> list[str]:
    """Return the files that hold functions, within the package."""
    return sorted({str(Path(code.co_filename).relative_to(PACKAGE)) for code in codes})


def entered_by(name: str) -> set[CodeType]:
    """Return the functions that one ``attribute()`` of a Layer form enters."""
    model, tokenizer = load_demo_model()
    ids = tokenizer("funny but dull", return_tensors="pt").input_ids
    method = getattr(captum_attnflow, name)(
        lambda ids: model(ids).logits, model.bert.embeddings
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return entered(lambda: method.attribute(ids, target=1))


if __name__ == "__main__":
    for name in METHODS:
        codes = entered_by(name)
        files = files_of(codes)
        print(f"{name}: {len(codes)} functions in {len(files)} files")
        if "--files" in sys.argv:
            print(*(f"  {file}" for file in files), sep="\n")
