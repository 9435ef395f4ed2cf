/* Frees the pages of a file chunk by chunk, as free does: FILE LENGTH THREADS CHUNK. */
#define _GNU_SOURCE
#include "chunked.h"

static void punch(char *start, size_t length)
{
    if (fallocate(chunk_file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, start - chunk_base, length))
        die("fallocate");
}

int main(int argc, char **argv)
{
    return run_chunked(argc, argv, O_RDWR, punch);
}
