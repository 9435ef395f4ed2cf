"""The contents of the mount: files and directories of ``vfs`` that show and change ``tasks``.

Imports ``vfs``, ``tasks``, ``operations/base`` and ``host``; ``task_text.py`` also ``progress``. It knows no FUSE.
"""
