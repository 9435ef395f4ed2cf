"""The processes that do the work: the spawner, which forks them, and the life of one worker.

They run without trio. Imports ``operations/base``, ``ktask``, ``host`` and ``progress``.
"""
