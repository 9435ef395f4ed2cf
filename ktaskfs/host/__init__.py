"""The machine: system calls, mappings, pools, NUMA nodes, credentials, groups.

Imports no other layer. It knows no task, no operation and no mount.
"""
