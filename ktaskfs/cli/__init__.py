"""The command ``ktaskfs``.

``mount`` becomes the daemon, and imports ``daemon``, ``config``, ``systemd``, and of ``tasks`` where the log is kept.
All others use the mounted files and nothing else of ktaskfs, as any program could: ``mounted`` reads and writes
them, ``start`` and ``follow`` make a task's life of that, ``orders`` steers it from standard input, ``reports`` and
``live`` show it. ``doctor`` alone also reads /proc and /sys, through ``machine``. ``fleet`` does so on many hosts.
"""
