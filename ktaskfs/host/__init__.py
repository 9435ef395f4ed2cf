"""What the machine is and does: system calls, mappings, pools, NUMA nodes, credentials, safe opening.

Imports nothing else of the package. It knows no task, no operation and no mount.
"""
