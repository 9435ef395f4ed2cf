"""What files of memory have in common: growing, room, reading and writing without a touch, and words for trouble.

Imports ``host``. It knows open files and spans, no specs and no tasks.
"""
