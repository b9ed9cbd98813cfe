/* Makes system calls on the data file fail. LD_PRELOAD it with FAULT_CONTROL naming a file: as long as that
 * file exists and its text holds a call's name, that call fails on paths that contain FAULT_PATH, with EIO, or
 * with ENOSPC where the text has "full"; "slow" has it sleep for 50 ms instead. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static char control_text[256];

static int control(void) {
    const char *name = getenv("FAULT_CONTROL");
    if (name == NULL || access(name, F_OK) != 0) return 0;
    FILE *file = fopen(name, "r");
    if (file == NULL) return 0;
    size_t length = fread(control_text, 1, sizeof control_text - 1, file);
    control_text[length] = 0;
    fclose(file);
    return 1;
}

/* Whether the call has to fail; sets errno. */
static int hurt(int fd, const char *call) {
    char link[64], path[512];
    const char *wanted = getenv("FAULT_PATH");
    if (wanted == NULL || !control() || strstr(control_text, call) == NULL) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    if (strstr(path, wanted) == NULL) return 0;
    if (strstr(control_text, "slow") != NULL) {
        usleep(50000);
        return 0;
    }
    errno = strstr(control_text, "full") != NULL ? ENOSPC : EIO;
    return 1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
    return hurt(fd, "write") ? -1 : REAL(pwrite)(fd, data, size, at);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    return hurt(fd, "write") ? -1 : REAL(pwrite64)(fd, data, size, at);
}
ssize_t write(int fd, const void *data, size_t size) {
    return fd > 2 && hurt(fd, "write") ? -1 : REAL(write)(fd, data, size);
}
int fsync(int fd) { return hurt(fd, "sync") ? -1 : REAL(fsync)(fd); }
int fdatasync(int fd) { return hurt(fd, "sync") ? -1 : REAL(fdatasync)(fd); }
