from __future__ import annotations

import pytest

from captum_attnflow.runs.sharing import check_shared, read_part, seen_from_anywhere


def test_a_part_is_counted_from_one():
    assert read_part("2/4") == (2, 4)
    assert read_part(None) == (1, 1)


@pytest.mark.parametrize("given", ["0/4", "5/4", "1/0"])
def test_a_part_out_of_range_is_refused(given):
    with pytest.raises(ValueError, match=f"part {given} is out of range.*give one of"):
        read_part(given)


@pytest.mark.parametrize("given", ["2", "2/", "-1/4", "a/b", "", "1/2/3"])
def test_what_is_no_part_is_refused(given):
    with pytest.raises(ValueError, match=r"is no part; give i/n"):
        read_part(given)


@pytest.mark.parametrize(
    ("environment", "part"),
    [
        ({"RANK": "3", "WORLD_SIZE": "8"}, (4, 8)),
        (
            {
                "SLURM_ARRAY_TASK_ID": "12",
                "SLURM_ARRAY_TASK_MIN": "10",
                "SLURM_ARRAY_TASK_COUNT": "5",
            },
            (3, 5),
        ),
        (
            {
                "SLURM_ARRAY_TASK_ID": "8",
                "SLURM_ARRAY_TASK_MIN": "0",
                "SLURM_ARRAY_TASK_STEP": "4",
                "SLURM_ARRAY_TASK_COUNT": "3",
            },
            (3, 3),
        ),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, (1, 2)),
    ],
)
def test_launchers_say_which_part_a_process_is(environment, part):
    assert read_part("auto", environment) == part


def test_auto_without_a_launcher_names_its_variables():
    with pytest.raises(ValueError, match=r"WORLD_SIZE.*SLURM_PROCID.*give the part"):
        read_part("auto", {})


def test_a_variable_that_is_no_number_is_named():
    with pytest.raises(ValueError, match="RANK is 'one'"):
        read_part("auto", {"RANK": "one", "WORLD_SIZE": "2"})


def test_a_model_folder_has_a_name_that_holds_anywhere(tmp_path, monkeypatch):
    (tmp_path / "models" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert seen_from_anywhere("models/mine") == str(tmp_path / "models" / "mine")
    assert seen_from_anywhere("owner/name") == "owner/name"


def test_a_worker_that_does_not_see_the_folder_is_refused_in_words(tmp_path):
    (tmp_path / "there.jsonl").touch()
    check_shared(tmp_path / "there.jsonl")
    with pytest.raises(
        ValueError, match=r"does not see the folder .* that all machines of the cluster"
    ):
        check_shared(tmp_path / "elsewhere" / "results.jsonl")
