/* Allocates and zeroes the pages of a file with MADV_POPULATE_WRITE: the limit of what fallocate can reach. */
#include "chunked.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

static void populate(char *start, size_t length)
{
    if (madvise(start, length, MADV_POPULATE_WRITE))
        die("madvise");
}

int main(int argc, char **argv)
{
    return run_chunked(argc, argv, O_RDWR | O_CREAT, populate);
}
