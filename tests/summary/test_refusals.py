from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from score_folders import explained, failed, random_rows, write_folder

from captum_attnflow.summary import summarize


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "scores", random_rows(12))


def test_the_folder_of_a_study_is_refused_as_such(tmp_path):
    (tmp_path / "part-000000.jsonl").write_text("{}\n")
    manifest = {"format": 2, "settings": {}, "methods": {}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"is the folder of a study; give one that"):
        summarize(tmp_path)


def test_a_folder_that_is_not_there_is_refused(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"'nowhere' is not there; give"):
        summarize("nowhere")
    with pytest.raises(FileNotFoundError, match=r"manifest.json' is a file; give"):
        summarize(folder / "manifest.json")
    with pytest.raises(FileNotFoundError, match=r"holds no manifest.json; give"):
        summarize(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"format": 2}', r"has the format 2; this version reads 1\. Give"),
        ("{}", r"has the format None"),
        ("[1]", r"has the format None"),
        ("{", r"manifest.json cannot be read: .*; give"),
        ("[" * 100_000, r"manifest.json cannot be read"),
    ],
)
def test_other_manifests_are_refused(folder, content, message):
    (folder / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        summarize(folder)


def test_folders_without_parts_or_of_two_formats_are_refused(folder):
    write_folder(folder, random_rows(12), "jsonl")
    with pytest.raises(ValueError, match="formats jsonl and parquet, so that rows may"):
        summarize(folder)
    for part in folder.glob("part-*"):
        part.unlink()
    with pytest.raises(FileNotFoundError, match=r"no part files.*explain --data"):
        summarize(folder)


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_damaged_parts_are_named(tmp_path, kind):
    folder = write_folder(tmp_path, random_rows(12), kind, rows_per_part=6)
    part = folder / f"part-000001.{kind}"
    part.write_bytes(part.read_bytes()[:-120])
    with pytest.raises(ValueError, match=rf"part-000001.{kind} is damaged.*Remove it"):
        summarize(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"scores": [1.0]},
        {"status": "other"},
        {"row": None},
        {"probability": "high"},
        {"scores": [1.0, "two"]},
    ],
)
def test_broken_rows_are_refused_with_their_part(tmp_path, change):
    row = explained(1, ["so", "good"], [1, 2]) | change
    folder = write_folder(tmp_path, [row], "jsonl")
    with pytest.raises(ValueError, match=r"part-000000.jsonl is damaged, or no part"):
        summarize(folder)


def test_a_table_without_scores_is_refused(folder):
    other = pa.table({"row": [1], "text": ["a"]})
    pq.write_table(other, folder / "part-000000.parquet")
    with pytest.raises(
        ValueError,
        match=r"no column 'status', 'target', 'tokens', 'scores'; it has 'row'",
    ):
        summarize(folder)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "holds 0 rows and no explained text to summarize: its part files are "),
        ([failed(1, "blank"), failed(2, "blank")], "2 failed with: blank. Give"),
        ([explained(1, ["a"], [0])], "all scores of words are 0. Give"),
    ],
)
def test_folders_without_explained_text_are_refused(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        summarize(write_folder(tmp_path, rows))


def test_an_unknown_label_column_is_refused_with_those_there_are(folder, tmp_path):
    with pytest.raises(ValueError, match=r"'gold' is no column.*it carries none. Give"):
        summarize(folder, label_column="gold")
    rows = [row | {"stars": "1", "true": "pos"} for row in random_rows(3)]
    carrying = write_folder(tmp_path / "carrying", rows)
    for name in ("gold", "target"):
        with pytest.raises(ValueError, match=r"it carries 'stars', 'true'. Give one"):
            summarize(carrying, label_column=name)


@pytest.mark.parametrize("folders", [[], None, 3, [1], {"a": 1}])
def test_what_is_no_folder_is_refused(folders):
    with pytest.raises(ValueError, match=r"folder.*; give"):
        summarize(folders)


def test_a_folder_is_compared_with_others_only(folder):
    with pytest.raises(ValueError, match="is given more than once; give every folder"):
        summarize([folder, folder / ".." / "scores"])


@pytest.mark.parametrize(
    "options", [{"top": 0}, {"min_texts": 1}, {"max_words": 0}, {"top": 1.5}]
)
def test_options_out_of_range_are_refused(folder, options):
    [name] = options
    with pytest.raises(ValueError, match=f"{name}=.* must be an integer of at least"):
        summarize(folder, **options)


def test_parts_are_read_in_the_order_of_their_numbers(tmp_path):
    folder = write_folder(tmp_path, random_rows(20), rows_per_part=10)
    (folder / "part-000001.parquet").rename(folder / "part-1000000.parquet")
    (folder / ".part-000002.parquet.tmp").write_text("unfinished")
    (folder / "summary").mkdir()
    found = summarize(folder).folders[0].counts
    assert found.n_texts == 20
    assert json.loads((folder / "manifest.json").read_text())["n_rows"] == 20
