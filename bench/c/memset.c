/* Zeroes the pages of a file in place with memset: the limit of what clear can reach. */
#include "chunked.h"

static void zero(char *start, size_t length)
{
    memset(start, 0, length);
}

int main(int argc, char **argv)
{
    return run_chunked(argc, argv, O_RDWR, zero);
}
