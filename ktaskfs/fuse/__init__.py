"""Serves a tree of ``vfs`` inodes through FUSE.

Imports ``vfs``. Nothing else in the package imports pyfuse3. It knows no task.
"""
