"""The tests below guest/ are for the inside of the virtual machine."""

from __future__ import annotations

import os

collect_ignore = [] if os.environ.get("KTASKFS_NUMA_GUEST") == "1" else ["guest"]
