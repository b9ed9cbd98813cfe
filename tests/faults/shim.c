/* Makes system calls on the data file fail, and writes down what is done to it. LD_PRELOAD it.
 *
 * FAULT_PATH: the data file's name; what is done to it and to its log is seen here.
 * FAULT_CONTROL: a file. As long as it is there, calls that its text names ("write", "read", "sync", "any") fail
 * with EIO, or with ENOSPC where it has "full". " at N": from the N-th of them on; "once": that one alone.
 * "short" has half of the bytes written, "slow" has the call sleep for 50 ms, "kill" ends the process. Each
 * fault leaves a mark: the file with ".hit" at the end of its name.
 * FAULT_JOURNAL: a file to which all changes and syncs are appended, for a replay that forgets what was not
 * synced. Each is a record as below, and the bytes that were written. */
#define _GNU_SOURCE
#include <ctype.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* W write, S sync, T truncate to `at`, U unlink, R rename to the data file; of the (d)ata file, its (w)al or its
 * rollback (j)ournal, or in capitals of the draft, the file with ".new" behind its name. */
struct record {
    char what, file, unused[2];
    uint32_t size;
    uint64_t at, nanoseconds;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char text[256], last_text[256];
static int calls;

static int control(void) {
    const char *name = getenv("FAULT_CONTROL");
    if (name == NULL || access(name, F_OK) != 0) return 0;
    int fd = open(name, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 0;
    ssize_t length = REAL(read)(fd, text, sizeof text - 1);
    close(fd);
    text[length < 0 ? 0 : length] = 0;
    return text[0] != 0;
}

static void mark(void) {
    char name[512];
    snprintf(name, sizeof name, "%s.hit", getenv("FAULT_CONTROL"));
    int fd = open(name, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    if (fd >= 0) close(fd);
}

/* The part of the path behind the data file's name, NULL if it is another file. */
static const char *ending(const char *path) {
    const char *wanted = getenv("FAULT_PATH");
    const char *found = wanted == NULL ? NULL : strstr(path, wanted);
    return found == NULL ? NULL : found + strlen(wanted);
}

static const char *ending_of(int fd, char *path, size_t size) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, size - 1);
    if (length < 0) return NULL;
    path[length] = 0;
    return ending(path);
}

/* Whether the call has to fail: 1, with errno set, or 2 for a short write. The lock is held. */
static int hurt(const char *behind, const char *call) {
    if (behind == NULL || !control()) return 0;
    if (strstr(text, call) == NULL && strstr(text, "any") == NULL) return 0;
    if (strcmp(text, last_text) != 0) {
        strcpy(last_text, text);
        calls = 0;
    }
    calls++;
    const char *at = strstr(text, " at ");
    int first = at == NULL ? 1 : atoi(at + 4);
    if (calls < first || (strstr(text, "once") != NULL && calls > first)) return 0;
    mark();
    if (strstr(text, "kill") != NULL) kill(getpid(), SIGKILL);
    if (strstr(text, "slow") != NULL) {
        usleep(50000);
        return 0;
    }
    if (strstr(text, "short") != NULL) return 2;
    errno = strstr(text, "full") != NULL ? ENOSPC : EIO;
    return 1;
}

static void note(const char *behind, char what, uint64_t at, const void *data, size_t size) {
    static int journal = -1;
    const char *name = getenv("FAULT_JOURNAL");
    if (name == NULL || behind == NULL) return;
    int draft = strncmp(behind, ".new", 4) == 0;
    if (draft) behind += 4;
    char file = *behind == 0 ? 'd' : behind[1];
    if (file == 's') return; /* shared memory: nobody expects it to outlive anything */
    if (draft) file = toupper(file);
    if (journal < 0) journal = open(name, O_CREAT | O_WRONLY | O_APPEND | O_CLOEXEC, 0600);
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    struct record record = {what, file, {0}, size, at, now.tv_sec * 1000000000ull + now.tv_nsec};
    if (REAL(write)(journal, &record, sizeof record) < 0) abort();
    if (size > 0 && REAL(write)(journal, data, size) < 0) abort();
}

typedef ssize_t (*pwriting)(int, const void *, size_t, off64_t);
typedef ssize_t (*preading)(int, void *, size_t, off64_t);

static ssize_t put(pwriting real, int fd, const void *data, size_t size, off64_t at) {
    char path[512];
    pthread_mutex_lock(&lock);
    const char *behind = ending_of(fd, path, sizeof path);
    int fault = hurt(behind, "write");
    if (fault == 2) size /= 2;
    ssize_t done = fault == 1 ? -1 : 0;
    if (fault != 1 && size > 0) {
        note(behind, 'W', at, data, size);
        done = real(fd, data, size, at);
    }
    pthread_mutex_unlock(&lock);
    return done;
}

static ssize_t get(preading real, int fd, void *data, size_t size, off64_t at) {
    char path[512];
    pthread_mutex_lock(&lock);
    int fault = hurt(ending_of(fd, path, sizeof path), "read");
    pthread_mutex_unlock(&lock);
    return fault == 1 ? -1 : real(fd, data, size, at);
}

static int cut(int (*real)(int, off64_t), int fd, off64_t size) {
    char path[512];
    pthread_mutex_lock(&lock);
    const char *behind = ending_of(fd, path, sizeof path);
    int fault = hurt(behind, "write");
    if (fault == 0) note(behind, 'T', size, NULL, 0);
    int done = fault == 0 ? real(fd, size) : -1;
    pthread_mutex_unlock(&lock);
    return done;
}

/* Noted once it is done: what a caller is told afterwards relies on it. */
static int sync_of(int (*real)(int), int fd) {
    char path[512];
    pthread_mutex_lock(&lock);
    const char *behind = ending_of(fd, path, sizeof path);
    int done = hurt(behind, "sync") ? -1 : real(fd);
    if (done == 0) note(behind, 'S', 0, NULL, 0);
    pthread_mutex_unlock(&lock);
    return done;
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
    return put((pwriting)REAL(pwrite), fd, data, size, at);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    return put((pwriting)REAL(pwrite64), fd, data, size, at);
}
ssize_t pread(int fd, void *data, size_t size, off_t at) {
    return get((preading)REAL(pread), fd, data, size, at);
}
ssize_t pread64(int fd, void *data, size_t size, off64_t at) {
    return get((preading)REAL(pread64), fd, data, size, at);
}
int ftruncate(int fd, off_t size) { return cut((int (*)(int, off64_t))REAL(ftruncate), fd, size); }
int ftruncate64(int fd, off64_t size) { return cut(REAL(ftruncate64), fd, size); }
int fsync(int fd) { return sync_of(REAL(fsync), fd); }
int fdatasync(int fd) { return sync_of(REAL(fdatasync), fd); }
int unlink(const char *path) {
    pthread_mutex_lock(&lock);
    const char *behind = ending(path);
    int fault = hurt(behind, "write");
    if (fault == 0) note(behind, 'U', 0, NULL, 0);
    int done = fault == 0 ? REAL(unlink)(path) : -1;
    pthread_mutex_unlock(&lock);
    return done;
}
int rename(const char *from, const char *to) {
    pthread_mutex_lock(&lock);
    const char *behind = ending(from);
    int fault = hurt(behind, "write");
    if (fault == 0) note(behind, 'R', 0, NULL, 0);
    int done = fault == 0 ? REAL(rename)(from, to) : -1;
    pthread_mutex_unlock(&lock);
    return done;
}
