/* Shows a process the time of day, moved by as many seconds as the file CLOCK_SHIFT says now. Built and used by
   tests/clock_jumps.rs: cc -shared -fPIC -o clock_shift.so clock_shift.c, then LD_PRELOAD. */
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *time) {
    int result = syscall(SYS_clock_gettime, clock, time);
    const char *path = getenv("CLOCK_SHIFT");
    if (result != 0 || !path || (clock != CLOCK_REALTIME && clock != CLOCK_REALTIME_COARSE))
        return result;
    char text[32] = {0};
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file >= 0) {
        if (read(file, text, sizeof text - 1) > 0)
            time->tv_sec += atol(text);
        close(file);
    }
    return 0;
}
