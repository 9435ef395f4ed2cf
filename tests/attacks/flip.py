"""An attacker: points the link LINK to each TARGET in turn, as fast as possible.

python flip.py LINK TARGET TARGET
"""

from __future__ import annotations

import itertools
import os
import sys

link, *targets = sys.argv[1:]
new = f"{link}.new"
os.symlink(targets[0], link)
print("held", flush=True)
for target in itertools.cycle(targets):
    os.symlink(target, new)
    os.rename(new, link)
