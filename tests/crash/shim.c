/* Counts the calls that read or change files under a folder, and lets the n-th one fail or be hit by a signal.
 *
 * To be preloaded. FAULT_UNDER: the folder. FAULT_AT: which call, from 1; 0 for none. FAULT_ERRNO: the error with which
 * it fails instead of being done; 0 for none. FAULT_SIGNAL: what the process sends itself before the call is done.
 * FAULT_LASTING: all later calls fail, too. FAULT_COUNT: a file to which the number of calls is written at the end.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static long calls;

static long number(const char *name)
{
    const char *value = getenv(name);
    return value ? atol(value) : 0;
}

static int is_ours(const char *path)
{
    const char *under = getenv("FAULT_UNDER");
    return under && strncmp(path, under, strlen(under)) == 0;
}

static int is_due(const char *path)
{
    long at = number("FAULT_AT"), now;

    if (!is_ours(path))
        return 0;
    now = __atomic_add_fetch(&calls, 1, __ATOMIC_SEQ_CST);
    if (at && now == at && number("FAULT_SIGNAL"))
        kill(getpid(), (int)number("FAULT_SIGNAL"));
    return at && number("FAULT_ERRNO") && (now == at || (now > at && number("FAULT_LASTING")));
}

static int fails(int fd)
{
    char link[64], path[PATH_MAX];
    ssize_t length;

    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = readlink(link, path, sizeof path - 1);
    if (length <= 0)
        return 0;
    path[length] = 0;
    return is_due(path);
}

__attribute__((destructor)) static void tell(void)
{
    const char *path = getenv("FAULT_COUNT");
    FILE *file = path ? fopen(path, "w") : NULL;

    if (file) {
        fprintf(file, "%ld\n", calls);
        fclose(file);
    }
}

#define WRAP(type, name, parameters, arguments, condition, failure)          \
    type name parameters                                                     \
    {                                                                        \
        static type(*real) parameters;                                       \
        if (!real)                                                           \
            *(void **)&real = dlsym(RTLD_NEXT, #name);                       \
        if (condition) {                                                     \
            errno = (int)number("FAULT_ERRNO");                              \
            return failure;                                                  \
        }                                                                    \
        return real arguments;                                               \
    }

#define BYTES(name, pointer)                                                                                      \
    WRAP(ssize_t, name, (int fd, pointer data, size_t length, off64_t at), (fd, data, length, at), fails(fd), -1)
#define PARTS(name)                                                                                               \
    WRAP(ssize_t, name, (int fd, const struct iovec *parts, int count, off64_t at), (fd, parts, count, at), fails(fd), -1)

BYTES(pread, void *)
BYTES(pread64, void *)
BYTES(pwrite, const void *)
BYTES(pwrite64, const void *)
PARTS(preadv)
PARTS(preadv64)
PARTS(pwritev)
PARTS(pwritev64)
WRAP(int, fsync, (int fd), (fd), fails(fd), -1)
WRAP(int, fdatasync, (int fd), (fd), fails(fd), -1)
WRAP(int, ftruncate, (int fd, off64_t length), (fd, length), fails(fd), -1)
WRAP(int, ftruncate64, (int fd, off64_t length), (fd, length), fails(fd), -1)
WRAP(int, fallocate, (int fd, int mode, off64_t at, off64_t length), (fd, mode, at, length), fails(fd), -1)
WRAP(int, fallocate64, (int fd, int mode, off64_t at, off64_t length), (fd, mode, at, length), fails(fd), -1)
WRAP(int, posix_fallocate, (int fd, off64_t at, off64_t length), (fd, at, length), fails(fd), (int)number("FAULT_ERRNO"))
WRAP(int, posix_fallocate64, (int fd, off64_t at, off64_t length), (fd, at, length), fails(fd), (int)number("FAULT_ERRNO"))
WRAP(int, rename, (const char *from, const char *to), (from, to), is_due(to), -1)
