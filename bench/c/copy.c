/* Copies SOURCE into a file of memory, in the ways that ktaskfs does: FILE LENGTH THREADS CHUNK SOURCE WAY.
 *
 * WAY read: the kernel reads right into the mapping, and clears new pages first; windows: the same, but a thread has at
 * most 8 MiB mapped, as ktaskfs on tmpfs; pages: through a buffer, and UFFDIO_COPY puts whole pages in. */
#include "chunked.h"

#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
#define WINDOW ((size_t)8 << 20)
#define BUFFER ((size_t)256 << 10)

static int source, guard;

static void read_all(char *to, size_t length, off_t at)
{
    while (length) {
        ssize_t count = pread(source, to, length, at);
        if (count <= 0)
            die("pread");
        to += count, at += count, length -= count;
    }
}

static void read_chunk(char *start, size_t length)
{
    read_all(start, length, start - chunk_base);
}

static void read_windows(char *start, size_t length)
{
    for (size_t done = 0; done < length; done += WINDOW) {
        size_t size = length - done < WINDOW ? length - done : WINDOW;
        read_chunk(start + done, size);
        let_go(start + done, size);
    }
}

static void put_pages(char *start, size_t length)
{
    char *buffer = aligned_alloc(4096, BUFFER);
    struct uffdio_register range = {.range = {(unsigned long)start, length}, .mode = UFFDIO_REGISTER_MODE_MISSING};
    if (!buffer || ioctl(guard, UFFDIO_REGISTER, &range))
        die("register");
    for (size_t done = 0; done < length; done += BUFFER) {
        size_t size = length - done < BUFFER ? length - done : BUFFER;
        read_all(buffer, size, start + done - chunk_base);
        struct uffdio_copy copy = {.dst = (unsigned long)start + done, .src = (unsigned long)buffer, .len = size};
        if (ioctl(guard, UFFDIO_COPY, &copy))
            die("copy");
    }
    if (munmap(start, length)) /* as a mapping made for the chunk alone would go */
        die("munmap");
    free(buffer);
}

int main(int argc, char **argv)
{
    if (argc != 7) {
        fprintf(stderr, "usage: %s FILE LENGTH THREADS CHUNK SOURCE read|windows|pages\n", argv[0]);
        return 2;
    }
    struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_MISSING_SHMEM};
    source = open(argv[5], O_RDONLY);
    if (source < 0)
        die(argv[5]);
    chunk_function work = !strcmp(argv[6], "read") ? read_chunk : read_windows;
    if (!strcmp(argv[6], "pages")) {
        guard = syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
        if (guard < 0 || ioctl(guard, UFFDIO_API, &api))
            die("userfaultfd");
        work = put_pages;
    }
    return run_chunked(5, argv, O_RDWR | O_CREAT, work);
}
