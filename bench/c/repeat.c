/* Writes a block of 512 KiB again and again into the pages of a file in place: the limit of what fill can reach. */
#include "chunked.h"

#define BLOCK (512u << 10)

static char block[BLOCK];

static void repeat(char *start, size_t length)
{
    for (size_t done = 0; done < length; done += BLOCK)
        memcpy(start + done, block, length - done < BLOCK ? length - done : BLOCK);
}

int main(int argc, char **argv)
{
    for (size_t i = 0; i < BLOCK; i++)
        block[i] = i % 251;
    return run_chunked(argc, argv, O_RDWR, repeat);
}
