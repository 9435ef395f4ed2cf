"""Operations on the machine's pools of huge pages.

A family: the rules of ``operations`` hold.
"""
