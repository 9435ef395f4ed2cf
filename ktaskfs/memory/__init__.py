"""Common code for files of memory: growth, room, reading and writing without a touch, and error messages.

Imports ``host``. It knows open files and spans, but no specs and no tasks.
"""
