"""The tests below guest/ and selinux/ are for the inside of virtual machines."""

from __future__ import annotations

import os

collect_ignore = [] if os.environ.get("KTASKFS_NUMA_GUEST") == "1" else ["guest", "selinux"]
