/* Makes COUNT files of LENGTH bytes in DIRECTORY and populates them, one after the other; prints its CPU seconds. */
#include "chunked.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

static void make(const char *name, size_t length)
{
    int fd = open(name, O_RDWR | O_CREAT, 0600);
    if (fd < 0 || ftruncate(fd, length))
        die(name);
    char *pages = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (pages == MAP_FAILED || madvise(pages, length, MADV_POPULATE_WRITE))
        die("populate");
    munmap(pages, length);
    close(fd);
}

int main(int argc, char **argv)
{
    if (argc != 4 || chdir(argv[3])) {
        fprintf(stderr, "usage: %s COUNT LENGTH DIRECTORY\n", argv[0]);
        return 2;
    }
    for (size_t number = 0; number < strtoull(argv[1], NULL, 0); number++) {
        char name[32];
        snprintf(name, sizeof(name), "file%zu", number);
        make(name, strtoull(argv[2], NULL, 0));
    }
    struct timespec spent;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &spent);
    printf("%.9f\n", spent.tv_sec + spent.tv_nsec * 1e-9);
    return 0;
}
