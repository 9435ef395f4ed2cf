"""Common code of operations: declaration, parameters, nodes, resume, and the registry.

Imports ``ktask`` and ``host``. It knows no family.
"""
