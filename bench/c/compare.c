/* Compares a file with SOURCE: FILE LENGTH THREADS CHUNK SOURCE WAY.
 *
 * WAY read: both are read into buffers of 256 KiB, which stay in a CPU's cache; ktaskfs reads files that are not memory
 * into larger ones, for fewer calls; mapped: memcmp in mappings of both, which a truncation of a file would end with
 * SIGBUS. */
#include "chunked.h"

#define BUFFER ((size_t)256 << 10)

static int source;
static char *mapped;

static void read_all(int fd, char *to, size_t length, off_t at)
{
    while (length) {
        ssize_t count = pread(fd, to, length, at);
        if (count <= 0)
            die("pread");
        to += count, at += count, length -= count;
    }
}

static void must_equal(const char *left, const char *right, size_t length)
{
    if (memcmp(left, right, length)) {
        fprintf(stderr, "the files differ\n");
        exit(1);
    }
}

static void compare_read(char *start, size_t length)
{
    char *left = aligned_alloc(4096, BUFFER), *right = aligned_alloc(4096, BUFFER);
    if (!left || !right)
        die("buffers");
    for (size_t done = 0; done < length; done += BUFFER) {
        size_t size = length - done < BUFFER ? length - done : BUFFER;
        read_all(chunk_file, left, size, start + done - chunk_base);
        read_all(source, right, size, start + done - chunk_base);
        must_equal(left, right, size);
    }
    free(left);
    free(right);
}

static void compare_mapped(char *start, size_t length)
{
    must_equal(start, mapped + (start - chunk_base), length);
}

int main(int argc, char **argv)
{
    if (argc != 7) {
        fprintf(stderr, "usage: %s FILE LENGTH THREADS CHUNK SOURCE read|mapped\n", argv[0]);
        return 2;
    }
    source = open(argv[5], O_RDONLY);
    if (source < 0)
        die(argv[5]);
    if (!strcmp(argv[6], "read"))
        return run_chunked(5, argv, O_RDWR, compare_read);
    mapped = mmap(NULL, strtoull(argv[2], NULL, 0), PROT_READ, MAP_SHARED, source, 0);
    if (mapped == MAP_FAILED)
        die("map the source");
    return run_chunked(5, argv, O_RDWR, compare_mapped);
}
