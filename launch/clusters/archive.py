"""The code that a cluster runs: an archive of one commit, and named after it."""

from __future__ import annotations

import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from mmjax.types.errors import UserError


@dataclass(frozen=True)
class Code:
    """What is archived.

    Attributes:
      revision: name of the archive: the commit, and with changes on top of it also the tree that they make.
      tree: the git object that holds the files.
    """

    revision: str
    tree: str


def find(root: Path, dirty: bool) -> Code:
    """The commit of a checkout, or its files as they are.

    Args:
      root: top of the checkout.
      dirty: take changed and new files too; ignored ones never.

    Raises:
      UserError: no checkout, or files that differ from the commit without `dirty`.
    """
    try:
        commit = _git(root, "rev-parse", "HEAD")
    except (OSError, subprocess.CalledProcessError):
        raise UserError(
            "the code is shipped as a git commit, but this is no checkout; clone the repository and launch there"
        ) from None
    changed = [line[3:] for line in _git(root, "status", "--porcelain").splitlines()]
    if not changed:
        return Code(f"mmjax-{commit[:12]}", commit)
    if not dirty:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise UserError(f"not in the commit: {', '.join(changed[:3])}{more}; commit them, or ship them too with --dirty")
    tree = _tree_as_it_is(root)
    return Code(f"mmjax-{commit[:12]}-dirty-{tree[:8]}", tree)


def write(root: Path, code: Code, directory: Path) -> Path:
    """Writes the archive.

    Args:
      root: top of the checkout.
      code: what `find` gave.
      directory: made if need be.

    Returns:
      Where it is: REVISION.tar.gz in that directory.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory.resolve() / f"{code.revision}.tar.gz"
    _git(root, "archive", "--format=tar.gz", f"--output={path}", code.tree)
    return path


def _tree_as_it_is(root: Path) -> str:
    """The tree of all files that are not ignored, made in an index of its own: the user's stays as it is."""
    with tempfile.TemporaryDirectory() as directory:
        index = {"GIT_INDEX_FILE": os.path.join(directory, "index")}
        _git(root, "read-tree", "HEAD", **index)
        _git(root, "add", "--all", **index)
        return _git(root, "write-tree", **index)


def _git(root: Path, *arguments: str, **environment: str) -> str:
    call = ["git", "-C", str(root), *arguments]
    return subprocess.run(call, env={**os.environ, **environment}, capture_output=True, text=True, check=True).stdout.rstrip()
