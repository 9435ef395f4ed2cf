/* Zeroes the pages of a file in place without touching them: the kernel copies from /dev/zero, with read(2). */
#include "chunked.h"

static int zero;

static void read_zeros(char *start, size_t length)
{
    while (length) {
        ssize_t count = read(zero, start, length);
        if (count <= 0)
            die("read");
        start += count, length -= count;
    }
}

int main(int argc, char **argv)
{
    zero = open("/dev/zero", O_RDONLY);
    if (zero < 0)
        die("/dev/zero");
    return run_chunked(argc, argv, O_RDWR, read_zeros);
}
