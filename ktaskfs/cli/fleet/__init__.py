"""``--hosts``: the command on many hosts at once, through OpenSSH.

Each host runs ``ktaskfs ... --json``, controlled through its standard input. ``hosts`` has their states, only
``connections`` and ``workers`` use ClusterShell, ``reports``, ``table`` and ``summary`` show,
``watch`` is ``run``, and ``ask`` is ``ls`` and ``doctor``.
"""
