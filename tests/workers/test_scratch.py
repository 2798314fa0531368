"""The private folder, and what is taken out of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from workers.scratch import NotAFile, plain_file, read_report, scratch_folder, wipe_abandoned_folders


def test_the_scratch_folder_is_private_and_wiped(tmp_path: Path) -> None:
    with scratch_folder(tmp_path, "job_1") as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "out").mkdir()
        (folder / "out" / "file").write_text("x")
    assert list(tmp_path.iterdir()) == []


def _lock_and_fail(parent: Path) -> None:
    with scratch_folder(parent, "job_1") as folder:
        (folder / "locked").mkdir()
        (folder / "locked" / "file").write_text("x")
        (folder / "locked").chmod(0)
        raise RuntimeError


def test_the_folder_is_wiped_even_when_the_job_fails_or_locks_it(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        _lock_and_fail(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_folders_of_killed_workers_are_wiped_after_a_day(tmp_path: Path) -> None:
    for name in ("fewbit-job_1-x", "fewbit-mdl_1-x", "fewbit-job_2-new", "fewbit-demo-x", "another"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model").write_text("x")
        os.utime(tmp_path / name, times=None if name.endswith("new") else (0, 0))
    (tmp_path / "fewbit-job_1-x" / "locked").mkdir(mode=0)
    os.utime(tmp_path / "fewbit-job_1-x", times=(0, 0))
    (tmp_path / "fewbit-job_3-link").symlink_to(tmp_path / "another")
    os.utime(tmp_path / "fewbit-job_3-link", times=(0, 0), follow_symlinks=False)
    wipe_abandoned_folders(tmp_path)
    left = {entry.name for entry in tmp_path.iterdir() if not entry.is_symlink()}
    assert left == {"fewbit-job_2-new", "fewbit-demo-x", "another"}
    assert (tmp_path / "another" / "model").exists()


def test_wiping_a_missing_folder_does_not_change_its_parent(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with scratch_folder(tmp_path, "job_1") as folder:
        folder.rmdir()
    assert tmp_path.stat().st_mode & 0o777 == 0o755


def test_wiping_does_not_follow_links(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "keep").write_text("x")
    with scratch_folder(tmp_path / "scratch", "job_1") as folder:
        (folder / "link").symlink_to(outside)
    assert (outside / "keep").exists()


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "/etc/passwd", "missing", "folder", "link"])
def test_only_plain_files_are_taken(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("/etc/passwd")
    with pytest.raises(NotAFile):
        plain_file(tmp_path, name)


def test_a_linked_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").write_text("x")
    (tmp_path / "out").symlink_to(tmp_path / "real")
    with pytest.raises(NotAFile):
        plain_file(tmp_path / "out", "file")


def test_a_linked_report_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "report.json").symlink_to("/etc/passwd")
    with pytest.raises(NotAFile):
        read_report(tmp_path)
