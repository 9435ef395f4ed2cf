"""Operations on the memory of a process.

A family: the rules of ``operations`` hold.
"""
