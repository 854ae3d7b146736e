"""Tars that are read where they lie: their members' places, found in one pass, and where they are damaged.

Nothing in a tar is trusted or unpacked: only plain files count, and no name of a member ever becomes a path.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mmjax.types import UserError


class Damage(NamedTuple):
    """Where a tar ends before its end, and why."""

    offset: int
    reason: str


class Member(NamedTuple):
    """A file in a tar: its name, and its first byte and the one behind its last."""

    name: str
    start: int
    stop: int


def walk(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo | Damage]:
    """The files of a tar in order, and where it is damaged: Python's own iteration takes most damage for the end."""
    try:
        while (member := tar.next()) is not None:
            tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue]  # tarfile keeps them all
            if tar.offset <= member.offset:
                yield Damage(member.offset, "a file of negative size")
                return
            if member.isfile():
                yield member
        assert tar.fileobj is not None
        tar.fileobj.seek(tar.offset)
        if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            yield Damage(tar.offset, "no header")
    except tarfile.TarError as error:
        yield Damage(tar.offset, str(error))


def members(path: Path) -> Iterator[Member]:
    """The files of a tar in order.

    Raises:
      UserError: it is compressed, damaged or no tar.
    """
    try:
        tar = tarfile.open(path, "r:")
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{path} is no plain tar ({error}); unpack it, or write it again without compression") from None
    with tar:
        for member in walk(tar):
            if isinstance(member, Damage):
                raise UserError(f"{path} is damaged at byte {member.offset} ({member.reason}); download it again")
            if not member.issparse():
                yield Member(member.name.removeprefix("./"), member.offset_data, member.offset_data + member.size)


def sample_key(name: str) -> tuple[str, str]:
    """The key of the sample to which a file belongs, its name up to the first dot; and what follows, in lower case."""
    folder, slash, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return folder + slash + stem, extension.lower()
