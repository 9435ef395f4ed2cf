"""The processes that do the work: the spawner, which forks them, and the life of one worker.

Runs in processes of its own, without trio. Imports ``operations``, ``ktask``, ``host`` and ``progress``.
"""
