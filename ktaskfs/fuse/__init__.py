"""Serves a tree of ``vfs`` inodes through FUSE.

Imports ``vfs`` only, and nothing else of the package imports pyfuse3. It knows no task.
"""
