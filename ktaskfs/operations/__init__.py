"""The operations: one package for each family of targets, one file for each operation.

In a family every file that does not begin with ``_`` is one operation; ``base.registry`` finds it. A family imports
``operations/base``, ``memory``, ``ktask`` and ``host``, never another family.
"""
