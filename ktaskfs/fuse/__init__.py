"""Serves a tree of ``vfs`` inodes through FUSE.

Imports only ``vfs``, and nothing else in the package imports pyfuse3. It knows no task.
"""
