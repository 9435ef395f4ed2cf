/* Allocates and zeroes the pages of a file with MADV_POPULATE_WRITE: the limit of what fallocate can reach.
 *
 * FILE LENGTH THREADS CHUNK [WINDOW]: with WINDOW a thread has at most so many bytes mapped, as ktaskfs on tmpfs. */
#include "chunked.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

static size_t window;

static void populate(char *start, size_t length)
{
    if (madvise(start, length, MADV_POPULATE_WRITE))
        die("madvise");
}

static void populate_windows(char *start, size_t length)
{
    for (size_t done = 0; done < length; done += window) {
        size_t size = length - done < window ? length - done : window;
        populate(start + done, size);
        let_go(start + done, size);
    }
}

int main(int argc, char **argv)
{
    if (argc != 6)
        return run_chunked(argc, argv, O_RDWR | O_CREAT, populate);
    window = strtoull(argv[5], NULL, 0);
    return run_chunked(5, argv, O_RDWR | O_CREAT, populate_windows);
}
