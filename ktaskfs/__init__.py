"""ktaskfs: chunked, multithreaded work on huge-page memory, controlled through a filesystem like /proc.

Imports nothing. ARCHITECTURE.md has the layers, and who may import whom.
"""
