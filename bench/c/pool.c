/* The least pool of threads that takes chunks from a shared counter: what a framework can cost and reach at best.
 *
 * CHUNKS THREADS nothing|sleep|zero SIZE: each chunk does nothing, sleeps for SIZE microseconds, or reads SIZE bytes
 * of /dev/zero into its thread's buffer. Prints the seconds until the last thread has ended, and those of CPU. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

typedef void (*chunk_function)(size_t index);

static atomic_size_t next;
static size_t chunks, size;
static int zeros;
static chunk_function work;

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static double now(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void do_nothing(size_t index)
{
    (void)index;
}

static void do_sleep(size_t index)
{
    struct timespec t = {size / 1000000, size % 1000000 * 1000};
    (void)index;
    if (nanosleep(&t, NULL))
        die("nanosleep");
}

static void do_zero(size_t index)
{
    static _Thread_local struct iovec buffer;
    (void)index;
    if (!buffer.iov_base) {
        buffer.iov_base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        buffer.iov_len = size;
        if (buffer.iov_base == MAP_FAILED)
            die("mmap");
    }
    if (preadv(zeros, &buffer, 1, 0) != (ssize_t)size)
        die("preadv");
}

static void *take_chunks(void *nothing)
{
    size_t index;
    while ((index = atomic_fetch_add(&next, 1)) < chunks)
        work(index);
    return nothing;
}

int main(int argc, char **argv)
{
    if (argc != 5) {
        fprintf(stderr, "usage: %s CHUNKS THREADS nothing|sleep|zero SIZE\n", argv[0]);
        return 2;
    }
    chunks = strtoull(argv[1], NULL, 0);
    size_t threads = strtoull(argv[2], NULL, 0);
    work = !strcmp(argv[3], "sleep") ? do_sleep : !strcmp(argv[3], "zero") ? do_zero : do_nothing;
    size = strtoull(argv[4], NULL, 0);
    zeros = open("/dev/zero", O_RDONLY);
    if (zeros < 0)
        die("/dev/zero");

    pthread_t ids[threads];
    double start = now(CLOCK_MONOTONIC), cpu = now(CLOCK_PROCESS_CPUTIME_ID);
    for (size_t i = 1; i < threads; i++)
        if ((errno = pthread_create(&ids[i], NULL, take_chunks, NULL)))
            die("pthread_create");
    take_chunks(NULL);
    for (size_t i = 1; i < threads; i++)
        pthread_join(ids[i], NULL);
    printf("%.9f %.9f\n", now(CLOCK_MONOTONIC) - start, now(CLOCK_PROCESS_CPUTIME_ID) - cpu);
    return 0;
}
