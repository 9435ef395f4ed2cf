"""The command ``ktaskfs``.

``mount`` becomes the daemon, and imports ``daemon``, ``config``, ``systemd``, and of ``tasks`` where the log is kept.
All others use only the mounted files, as any program could: ``mounted`` reads and writes them, ``start`` and
``follow`` start and follow tasks, ``orders`` reads commands from standard input, ``reports`` and ``live`` show
progress. Only ``doctor`` also reads /proc and /sys, through ``machine``. ``fleet`` does this on many hosts.
"""
