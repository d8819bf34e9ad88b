/* Sets a process's clock back by CLOCK_BEHIND seconds: cc -shared -fPIC -o clock_behind.so clock_behind.c, then LD_PRELOAD.
   libfaketime does the same, but not for programs with jemalloc, as Redis is. */
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *time) {
    int result = syscall(SYS_clock_gettime, clock, time);
    const char *behind = getenv("CLOCK_BEHIND");
    if (result == 0 && behind && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        time->tv_sec -= atol(behind);
    return result;
}

int gettimeofday(struct timeval *time, void *zone) {
    (void)zone;
    struct timespec now;
    int result = clock_gettime(CLOCK_REALTIME, &now);
    time->tv_sec = now.tv_sec;
    time->tv_usec = now.tv_nsec / 1000;
    return result;
}
