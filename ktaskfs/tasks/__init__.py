"""The tasks as the daemon knows them: spec language, table, start, life, record, limits.

Everything runs on the trio thread. The work itself is done by ``worker`` processes.
"""
