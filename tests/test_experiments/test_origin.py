"""Where numbers come from: the source tree, the device, the versions."""

import os
import subprocess

import jax

from experiments.base import origin
from experiments.base.versions import versions


def git(root, *arguments):
    author = {f"GIT_{who}_{what}": "a" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    command = ["git", "-C", str(root), "-c", "init.defaultBranch=main", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | author).stdout.strip()


def test_the_source_tree_is_told_by_its_commit_and_whether_its_programs_were_changed(tmp_path):
    assert origin.source_tree(tmp_path) == (None, None)
    git(tmp_path, "init")
    assert origin.source_tree(tmp_path) == (None, None)
    for folder in ("pathjax", "experiments", "docs"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "file.py").write_text("")
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--message", "a")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert origin.source_tree(tmp_path) == (commit, False)
    (tmp_path / "docs" / "file.py").write_text("x")
    assert origin.source_tree(tmp_path) == (commit, False)
    (tmp_path / "pathjax" / "new.py").write_text("x")
    assert origin.source_tree(tmp_path) == (commit, True)
    assert origin.source_tree(tmp_path / "docs") == (None, None)


def test_without_git_there_is_no_commit(tmp_path, monkeypatch):
    (tmp_path / ".git").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert origin.source_tree(tmp_path) == (None, None)


def test_this_process_says_its_device_and_versions():
    here = origin.here()
    assert here["device"] == jax.devices()[0].device_kind and here["versions"] == versions()
