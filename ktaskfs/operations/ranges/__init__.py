"""Operations on a range of one file, most of them on files of memory (hugetlbfs, tmpfs, memfd).

A family: the rules of ``operations`` hold.
"""
