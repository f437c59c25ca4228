"""The rooms of the package: which imports which, and how many a call walks through."""

from __future__ import annotations

from pathlib import Path

import pytest
from entered_files import METHODS, PACKAGE, entered_by, files_of
from module_imports import imports

# Which rooms a room may import. Helpers (_*.py) and the version are free to all.
ARROWS: dict[str, set[str]] = {
    "scored_tokens": set(),
    "storage": set(),
    "targets": set(),
    "capture": {"targets"},
    # Of the capture only its record, which holds tensors.
    "flow": {"capture"},
    "texts": {"targets"},
    "long_form": {"scored_tokens", "texts"},
    "explanation": {
        *("capture", "flow", "long_form", "scored_tokens", "storage", "texts"),
    },
    "attr": {"capture", "explanation", "flow", "targets", "texts"},
    "slalom": {
        *("attr", "capture", "targets", "texts"),
        *("long_form", "scored_tokens", "storage"),
    },
    "metrics": {"targets", "texts"},
    # What runs over tables share: rows, parts, workers, folders.
    "runs": set(),
    "tables": {"demo", "pipelines", "runs"},
    "study": {
        *("capture", "flow", "metrics", "pipelines", "runs", "scored_tokens", "texts"),
    },
    # Of the pictures only words, fonts and figures; of runs the checksums.
    "summary": {"runs", "scored_tokens", "show", "texts"},
}


def room_of(module: str) -> str:
    return module.split(".")[1]


ROOMS: dict[str, list[Path]] = {}
for file in sorted(PACKAGE.rglob("*.py")):
    ROOMS.setdefault(file.relative_to(PACKAGE).parts[0].removesuffix(".py"), []).append(
        file
    )


def imported_rooms(room: str) -> set[str]:
    modules = {module for file in ROOMS[room] for module in imports(file)}
    rooms = {
        room_of(module) for module in modules if module.startswith("captum_attnflow.")
    }
    return {other for other in rooms - {room} if not other.startswith("_")}


@pytest.mark.parametrize("room", ARROWS)
def test_arrows_run_one_way(room):
    assert imported_rooms(room) <= ARROWS[room]


def test_rooms_import_each_other_in_no_circle():
    reached = {room: imported_rooms(room) for room in ROOMS if room != "__init__"}
    while True:
        further = {
            room: rooms.union(*(reached.get(other, set()) for other in rooms))
            for room, rooms in reached.items()
        }
        if further == reached:
            break
        reached = further
    assert [room for room, rooms in reached.items() if room in rooms] == []


def test_flow_knows_of_the_capture_its_record_alone():
    modules = {module for file in ROOMS["flow"] for module in imports(file)}
    of_capture = {m for m in modules if m.startswith("captum_attnflow.capture")}
    names = {m.removeprefix("captum_attnflow.capture.") for m in of_capture}
    assert names <= {"record"}


@pytest.mark.parametrize(
    ("method", "limit"),
    [
        ("LayerGeneralizedAttentionFlow", 25),
        ("LayerAttentionRollout", 20),
        ("LayerAttnLRP", 20),
    ],
)
def test_a_reader_follows_a_call_through_few_files(method, limit):
    assert method in METHODS
    assert len(files_of(entered_by(method))) <= limit
