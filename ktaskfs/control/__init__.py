"""The contents of the mount: files and directories of ``vfs`` that show and change ``tasks``.

Imports ``vfs``, ``tasks``, ``operations`` and ``host``. It knows no FUSE.
"""
