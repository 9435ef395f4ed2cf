"""The measurements of ktaskfs: each module that calls ``main`` of ``harness`` is one.

Not a part of the program, which does not import it.
"""
