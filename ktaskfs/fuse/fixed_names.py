"""Refuses all requests that make, remove or rename something other than a directory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyfuse3

from ktaskfs.errors import NotPermitted
from ktaskfs.fuse.answers import answering

if TYPE_CHECKING:
    from typing import NoReturn


class FixedNames(pyfuse3.Operations):
    """Answers them at once, without a turn: a refused turn would take as long."""

    @answering
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> NoReturn:
        raise NotPermitted("files cannot be made here")

    @answering
    async def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext) -> NoReturn:
        raise NotPermitted("links cannot be made here")

    @answering
    async def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: pyfuse3.RequestContext) -> NoReturn:
        raise NotPermitted("links cannot be made here")

    @answering
    async def unlink(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> NoReturn:
        raise NotPermitted("files cannot be removed here")

    @answering
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: pyfuse3.RequestContext,
    ) -> NoReturn:
        raise NotPermitted("nothing can be renamed here")
