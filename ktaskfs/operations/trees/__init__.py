"""Operations on ordinary files, one or all below a directory.

A family: the rules of ``operations`` hold.
"""
