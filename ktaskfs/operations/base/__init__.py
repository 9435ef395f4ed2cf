"""What every operation is made of: its declaration, parameters, nodes, resume, and the registry.

Imports ``ktask`` and ``host``. It knows no family.
"""
