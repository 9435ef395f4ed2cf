"""The tasks as the daemon knows them: spec language, table, start, life, record, limits.

Everything runs on the trio thread. The work itself is done by processes of ``worker``. Imports ``worker``,
``operations/base``, ``host`` and ``progress``. It knows no file of the mount.
"""
