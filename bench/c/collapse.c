/*
 * Makes huge pages of a range of another process's memory: process_madvise(2), MADV_COLLAPSE, in pieces of 64 MiB.
 *
 * Usage: collapse PID ADDRESS SIZE THREADS; prints the seconds.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>
#include <pthread.h>

#define PIECE (64UL << 20)
#define COLLAPSE 25

static uintptr_t begin, end;
static atomic_uintptr_t next;
static int pidfd;

static void *work(void *unused)
{
	(void)unused;
	for (;;) {
		uintptr_t at = atomic_fetch_add(&next, PIECE);
		if (at >= end)
			return NULL;
		struct iovec range = { (void *)at, end - at < PIECE ? end - at : PIECE };
		/* EAGAIN: a page is locked or isolated for a moment, as madvise(2) says. */
		while (syscall(SYS_process_madvise, pidfd, &range, 1UL, COLLAPSE, 0) < 0) {
			if (errno != EAGAIN) {
				perror("process_madvise");
				exit(1);
			}
		}
	}
}

int main(int argc, char **argv)
{
	if (argc != 5)
		return 2;
	pidfd = syscall(SYS_pidfd_open, atoi(argv[1]), 0);
	begin = strtoull(argv[2], NULL, 0);
	end = begin + strtoull(argv[3], NULL, 0);
	int threads = atoi(argv[4]);
	pthread_t others[threads];
	struct timespec before, after;

	next = begin;
	clock_gettime(CLOCK_MONOTONIC, &before);
	for (int i = 1; i < threads; i++)
		pthread_create(&others[i], NULL, work, NULL);
	work(NULL);
	for (int i = 1; i < threads; i++)
		pthread_join(others[i], NULL);
	clock_gettime(CLOCK_MONOTONIC, &after);
	printf("%.9f\n", after.tv_sec - before.tv_sec + (after.tv_nsec - before.tv_nsec) / 1e9);
	return 0;
}
