from __future__ import annotations

import os
import stat
import threading

import pytest

from captum_attnflow._files import replace_file


def test_a_failed_write_leaves_the_old_content_and_nothing_else(tmp_path, monkeypatch):
    file = tmp_path / "page.html"
    replace_file(file, "old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"page\.html cannot be written: No space left"):
        replace_file(file, "new")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_full_device_is_named():
    with pytest.raises(OSError, match="/dev/full cannot be written: No space left"):
        replace_file("/dev/full", "x")


def test_a_folder_in_its_place_is_named(tmp_path):
    with pytest.raises(OSError, match=f"{tmp_path} cannot be written: Is a directory"):
        replace_file(tmp_path, "x")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(OSError, match=r"a\.html cannot be written: No such file"):
        replace_file(tmp_path / "missing" / "a.html", "x")


def test_a_link_is_replaced_and_what_it_names_stays(tmp_path):
    (tmp_path / "victim").write_text("mine")
    link = tmp_path / "page.html"
    link.symlink_to("victim")
    replace_file(link, "new")
    assert (tmp_path / "victim").read_text() == "mine"
    assert not link.is_symlink()
    assert link.read_text() == "new"


def test_a_pipe_is_written_to(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    replace_file(pipe, "content")
    reader.join()
    assert read == ["content"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_permissions_are_those_of_any_new_file_or_of_the_old_one(tmp_path):
    plain, new = tmp_path / "plain", tmp_path / "new"
    plain.touch()
    replace_file(new, "x")
    assert new.stat().st_mode == plain.stat().st_mode
    new.chmod(0o600)
    replace_file(new, "y")
    assert stat.S_IMODE(new.stat().st_mode) == 0o600


def test_a_name_of_the_greatest_length_is_written(tmp_path):
    replace_file(tmp_path / ("n" * 255), "x")
    assert (tmp_path / ("n" * 255)).read_text() == "x"
