"""Serves a tree of ``ktaskfs.vfs`` nodes through FUSE; the only importer of pyfuse3."""
