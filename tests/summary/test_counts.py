from __future__ import annotations

import pytest
from score_folders import explained, failed, random_rows, write_folder

from captum_attnflow.summary import summarize


def wrong_of(folder, **options):
    return summarize(folder, label_column="gold", **options).folders[0].wrong


def predicted(row, label, probability, gold):
    scored = explained(row, ["so", "good"], [1, 2], predicted=label, target=label)
    return scored | {"probability": probability, "gold": gold}


def test_rows_are_counted_by_what_became_of_them(tmp_path):
    rows = [explained(n, ["a", "b"], [1, 2], predicted="x") for n in range(5)]
    rows[1] |= {"n_truncated": 7}
    rows[2] |= {"target": "neg", "n_truncated": 1}
    rows += [failed(10, "blank"), failed(11, "too long"), failed(12, "blank")]
    [folder] = summarize(write_folder(tmp_path, rows, n_rows=9)).folders
    counts = folder.counts
    assert (counts.n_rows, counts.n_texts, counts.n_expected) == (8, 8, 9)
    assert (counts.n_explained, counts.n_failed, counts.n_truncated) == (5, 3, 2)
    assert list(counts.failed.items()) == [("blank", 2), ("too long", 1)]
    assert counts.labels == {"pos": 4, "neg": 1}
    assert counts.predicted == {"x": 5}


def test_a_run_that_is_not_complete_is_said(tmp_path):
    summary = summarize(write_folder(tmp_path, random_rows(8), n_rows=30))
    assert "8 of 30: the run is not complete" in summary.to_html()
    assert "8 of 30: the run is not complete" in summary.__rich__().plain


def test_reasons_without_end_are_counted_together(tmp_path, monkeypatch):
    monkeypatch.setattr("captum_attnflow.summary.folder_summary._MOST_NAMES", 3)
    rows = [explained(0, ["a", "b"], [1, 2])]
    rows += [failed(n, f"row {n} is broken") for n in range(1, 11)]
    [folder] = summarize(write_folder(tmp_path, rows)).folders
    assert folder.counts.failed["others"] == 7
    assert folder.counts.n_failed == 10


def test_the_most_probable_wrong_predictions_come_first(tmp_path):
    rows = [
        predicted(n, *("pos" if n % 3 else "neg", n / 100), "pos" if n % 2 else "neg")
        for n in range(50, 99)
    ]
    wrong = wrong_of(write_folder(tmp_path, rows), top=4)
    by_hand = [row for row in rows if row["gold"] != row["predicted"]]
    assert (wrong.n_compared, wrong.n_wrong) == (49, len(by_hand))
    ranked = sorted(by_hand, key=lambda row: -row["probability"])
    assert [each.text.row.row for each in wrong.texts] == [
        row["row"] for row in ranked[:4]
    ]
    assert [each.true_label for each in wrong.texts] == [
        row["gold"] for row in ranked[:4]
    ]


def test_a_text_of_several_labels_is_wrong_once_with_the_predicted_ones_scores(
    tmp_path,
):
    rows = [
        predicted(n, "pos", 0.9 - n / 100, "neg") | {"target": label}
        for n in range(3)
        for label in ("neg", "pos")
    ]
    wrong = wrong_of(write_folder(tmp_path, rows))
    assert (wrong.n_compared, wrong.n_wrong) == (3, 3)
    assert [(each.text.row.row, each.text.row.label) for each in wrong.texts] == [
        *((0, "pos"), (1, "pos"), (2, "pos")),
    ]


def test_true_labels_may_be_indices_where_the_manifest_names_the_classes(tmp_path):
    rows = [predicted(n, "pos", 0.9, str(n % 2)) for n in range(6)]
    named = write_folder(tmp_path / "named", rows, labels=["neg", "pos"])
    wrong = wrong_of(named)
    assert wrong.n_wrong == 3
    assert {each.true_label for each in wrong.texts} == {"neg"}
    unnamed = write_folder(tmp_path / "unnamed", rows)
    with pytest.raises(ValueError, match="holds '0', '1', but the model's labels are"):
        wrong_of(unnamed)


def test_texts_without_label_or_probability_are_not_shown(tmp_path):
    rows = [predicted(n, "pos", 0.9, "neg") for n in range(3)]
    rows += [predicted(3, "pos", None, "neg"), predicted(4, "pos", 0.9, None)]
    rows += [predicted(5, "neg", 0.9, "neg")]
    wrong = wrong_of(write_folder(tmp_path, rows))
    assert (wrong.n_compared, wrong.n_wrong, len(wrong.texts)) == (5, 4, 3)


def test_an_empty_label_column_is_refused(tmp_path):
    rows = [predicted(n, "pos", 0.9, None) for n in range(3)]
    with pytest.raises(ValueError, match="'gold' is empty in all explained rows; give"):
        wrong_of(write_folder(tmp_path, rows))
