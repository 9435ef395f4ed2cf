/* A range cut into chunks that threads take from a shared counter: the least that a C program would write. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

typedef void (*chunk_function)(char *start, size_t length);

struct job {
    char *base;
    size_t length, chunk;
    atomic_size_t next;
    chunk_function work;
};

static char *chunk_base; /* where the file begins in memory */
static int chunk_file;   /* its descriptor */

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static inline void let_go(char *start, size_t length) /* unmaps the pages; the file keeps them */
{
    if (madvise(start, length, MADV_DONTNEED))
        die("let go");
}

static void *take_chunks(void *argument)
{
    struct job *job = argument;
    for (;;) {
        size_t at = atomic_fetch_add(&job->next, job->chunk);
        if (at >= job->length)
            return NULL;
        size_t left = job->length - at;
        job->work(job->base + at, left < job->chunk ? left : job->chunk);
    }
}

/* FILE LENGTH THREADS CHUNK: prints the seconds from the open until the last thread has ended. */
static inline int run_chunked(int argc, char **argv, int flags, chunk_function work)
{
    if (argc != 5) {
        fprintf(stderr, "usage: %s FILE LENGTH THREADS CHUNK\n", argv[0]);
        return 2;
    }
    struct job job = {.length = strtoull(argv[2], NULL, 0), .chunk = strtoull(argv[4], NULL, 0), .work = work};
    size_t threads = strtoull(argv[3], NULL, 0);
    pthread_t ids[threads];

    double start = now();
    int fd = chunk_file = open(argv[1], flags, 0600);
    if (fd < 0)
        die(argv[1]);
    struct stat st;
    if (fstat(fd, &st) || ((size_t)st.st_size < job.length && ftruncate(fd, job.length)))
        die("size");
    job.base = mmap(NULL, job.length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (job.base == MAP_FAILED)
        die("mmap");
    chunk_base = job.base;
    for (size_t i = 1; i < threads; i++)
        if ((errno = pthread_create(&ids[i], NULL, take_chunks, &job)))
            die("pthread_create");
    take_chunks(&job);
    for (size_t i = 1; i < threads; i++)
        pthread_join(ids[i], NULL);
    printf("%.9f\n", now() - start);
    return 0;
}
