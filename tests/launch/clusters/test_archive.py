from __future__ import annotations

import subprocess
import tarfile

import pytest

from launch.clusters import archive
from mmjax.types.errors import UserError


def git(directory, *arguments: str) -> str:
    identity = ("-c", "user.name=n", "-c", "user.email=e@example.org")
    return subprocess.run(
        ["git", *identity, *arguments], cwd=directory, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    git(tmp_path, "init", "--quiet")
    (tmp_path / "a.py").write_text("committed\n")
    (tmp_path / ".gitignore").write_text("ignored\n")
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "--message=first")
    (tmp_path / "ignored").write_text("never\n")
    return tmp_path


def contents(path) -> dict[str, str]:
    with tarfile.open(path) as files:
        return {member.name: files.extractfile(member).read().decode() for member in files if member.isfile()}


def test_a_clean_tree_is_named_after_its_commit(checkout, tmp_path_factory):
    code = archive.find(checkout, dirty=False)
    assert code.revision == f"mmjax-{git(checkout, 'rev-parse', 'HEAD')[:12]}"
    path = archive.write(checkout, code, tmp_path_factory.mktemp("out") / "new")
    assert path.name == f"{code.revision}.tar.gz"
    assert contents(path) == {"a.py": "committed\n", ".gitignore": "ignored\n"}


def test_what_is_not_committed_is_refused_by_name(checkout):
    (checkout / "a.py").write_text("changed\n")
    for name in ("b.py", "c.py", "d.py"):
        (checkout / name).write_text("new\n")
    with pytest.raises(UserError) as error:
        archive.find(checkout, dirty=False)
    assert str(error.value) == "not in the commit: a.py, b.py, c.py and 1 more; commit them, or ship them too with --dirty"


def test_a_dirty_tree_is_shipped_as_it_is_and_named_after_its_files(checkout, tmp_path_factory):
    (checkout / "a.py").write_text("changed\n")
    (checkout / "b.py").write_text("new\n")
    before = git(checkout, "status", "--porcelain")
    code = archive.find(checkout, dirty=True)
    assert code.revision.startswith(f"mmjax-{git(checkout, 'rev-parse', 'HEAD')[:12]}-dirty-")
    assert archive.find(checkout, dirty=True) == code
    assert git(checkout, "status", "--porcelain") == before, "the user's index is as it was"
    path = archive.write(checkout, code, tmp_path_factory.mktemp("out"))
    assert contents(path) == {"a.py": "changed\n", "b.py": "new\n", ".gitignore": "ignored\n"}
    (checkout / "b.py").write_text("other\n")
    assert archive.find(checkout, dirty=True).revision != code.revision


def test_only_a_checkout_can_be_shipped(tmp_path):
    with pytest.raises(UserError, match="is no checkout; clone the repository"):
        archive.find(tmp_path, dirty=False)
