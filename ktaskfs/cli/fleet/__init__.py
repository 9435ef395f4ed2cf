"""``--hosts``: the command on many hosts at once, through OpenSSH.

On each host runs ``ktaskfs ... --json``, which is steered by its standard input. ``hosts`` knows how they stand,
``connections`` and ``workers`` alone know ClusterShell, ``reports``, ``table`` and ``summary`` show,
``watch`` is ``run``, and ``ask`` is ``ls`` and ``doctor``.
"""
