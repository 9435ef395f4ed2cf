"""The command ``ktaskfs``.

Imports no other layer; ``mount.py``, which becomes the daemon, also ``config``, ``systemd``, ``fuse``, ``tasks``,
``worker``, ``operations/base`` and ``daemon``.

All others use only the mounted files, as any program could: ``mounted`` reads and writes them, ``start`` and
``follow`` start and follow tasks, ``orders`` reads commands from standard input, ``reports`` and ``live`` show
progress. Only ``doctor`` also reads /proc and /sys, through ``machine``. ``fleet`` does this on many hosts.
"""
