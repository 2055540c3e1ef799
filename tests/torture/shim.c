/* Count, log, fail, cut short or die at the storage calls that a process makes below one folder.
 *
 * Preloaded (LD_PRELOAD) before Python starts, it stands between everything (our own code, zarr, LMDB) and libc:
 *
 *   SHIM_ROOT      folder; only calls on paths below it count
 *   SHIM_ACK       file outside the root; what is written to it is logged as an acknowledgement, not counted
 *   SHIM_COUNTER   file; mapped: 8 bytes with the number of calls so far (children go on counting), then a byte
 *                  with the op of each
 *   SHIM_LOG       file; every call is appended once it has succeeded, in the order in which they took effect
 *   SHIM_KILL_AT   k: SIGKILL in place of the k-th call        (SHIM_KILL_AFTER: right after it)
 *   SHIM_FAIL_AT   k: the k-th call fails with SHIM_ERRNO      (SHIM_FOREVER=1: and every later one)
 *   SHIM_SHORT_AT  k: the k-th call, if it writes, writes only half of its bytes
 *
 * With SHIM_ERRNO=ENOSPC only calls that can need room fail. An fsync that fails is not passed on, and the writes
 * before it stay: what the kernel drops after a real one is for the op-log replay to show.
 *
 * Log record, little-endian: u32 length of the rest | u8 op | u8 dsync | u16 length of path | u16 length of path2 |
 * u32 pid | i64 offset | path | path2 | data. Paths are absolute. Ops: see enum. Calls are serialised by a mutex,
 * so that the log's order is the order of effect.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { CREATE = 1, WRITE, SYNC, RENAME, UNLINK, MKDIR, RMDIR, TRUNCATE, LINK, ALLOCATE, SYNCFS, ACK };

static const char *root, *ack;
static size_t root_length;
static long kill_at, kill_after, fail_at, short_at, late, forever, error_number;
enum { COUNTED = 1 << 16 };
static struct { uint64_t calls; uint8_t ops[COUNTED]; } *counter, own_counter;
static int log_fd = -1;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static void before_fork(void) { pthread_mutex_lock(&mutex); }
static void after_fork(void) { pthread_mutex_unlock(&mutex); }

static long number(const char *name) {
    const char *text = getenv(name);
    return text ? atol(text) : 0;
}

/* Read the environment; called again (through ctypes) by a forked child that has changed it. */
__attribute__((constructor)) void shim_start(void) {
    root = getenv("SHIM_ROOT");
    root_length = root ? strlen(root) : 0;
    ack = getenv("SHIM_ACK");
    kill_at = number("SHIM_KILL_AT");
    kill_after = number("SHIM_KILL_AFTER");
    fail_at = number("SHIM_FAIL_AT");
    short_at = number("SHIM_SHORT_AT");
    late = number("SHIM_LATE");
    forever = number("SHIM_FOREVER");
    error_number = number("SHIM_ERRNO");
    counter = (void *)&own_counter, own_counter.calls = 0;
    const char *name = getenv("SHIM_COUNTER");
    if (name) {
        int fd = syscall(SYS_openat, AT_FDCWD, name, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
        if (fd >= 0 && syscall(SYS_ftruncate, fd, sizeof *counter) == 0) {
            void *map = mmap(NULL, sizeof *counter, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
            if (map != MAP_FAILED) counter = map;
            counter->calls = 0;
        }
        if (fd >= 0) syscall(SYS_close, fd);
    }
    if (log_fd >= 0) syscall(SYS_close, log_fd);
    log_fd = -1;
    if ((name = getenv("SHIM_LOG")))
        log_fd = syscall(SYS_openat, AT_FDCWD, name, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    static int once;
    if (!once++) pthread_atfork(before_fork, after_fork, after_fork);
}

/* Write a path's absolute form; 1 if it is below the root, 2 if it is the acknowledgements' file. */
static int place(int dir, const char *path, char *out) {
    if (!root_length) return 0;
    if (path[0] == '/') {
        snprintf(out, PATH_MAX, "%s", path);
    } else {
        char link[64], base[PATH_MAX];
        snprintf(link, sizeof link, dir == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", dir);
        ssize_t n = syscall(SYS_readlinkat, AT_FDCWD, link, base, sizeof base - 1);
        if (n < 0) return 0;
        base[n] = 0;
        snprintf(out, PATH_MAX, "%.2000s/%.2000s", base, path);
    }
    if (ack && !strcmp(out, ack)) return 2;
    return !strncmp(out, root, root_length) && (!out[root_length] || out[root_length] == '/');
}

static int place_fd(int fd, char *out) {
    char link[64];
    if (!root_length) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = syscall(SYS_readlinkat, AT_FDCWD, link, out, PATH_MAX - 1);
    if (n < 0) return 0;
    out[n] = 0;
    return out[0] == '/' ? place(AT_FDCWD, strdupa(out), out) : 0;
}

static void record(int op, int dsync, const char *path, const char *path2, int64_t offset,
                   const struct iovec *parts, int count, size_t length) {
    if (log_fd < 0) return;
    size_t n = strlen(path), m = path2 ? strlen(path2) : 0;
    uint32_t rest = 1 + 1 + 2 + 2 + 4 + 8 + n + m + length;
    char *buffer = malloc(4 + rest), *to = buffer;
    uint16_t short_n = n, short_m = m;
    uint32_t pid = getpid();
    memcpy(to, &rest, 4), to += 4;
    *to++ = op, *to++ = dsync;
    memcpy(to, &short_n, 2), to += 2;
    memcpy(to, &short_m, 2), to += 2;
    memcpy(to, &pid, 4), to += 4;
    memcpy(to, &offset, 8), to += 8;
    memcpy(to, path, n), to += n;
    if (m) memcpy(to, path2, m), to += m;
    for (int i = 0; i < count && length; i++) {
        size_t part = parts[i].iov_len < length ? parts[i].iov_len : length;
        memcpy(to, parts[i].iov_base, part), to += part, length -= part;
    }
    size_t done = 0;
    while (done < 4 + rest) {
        long w = syscall(SYS_write, log_fd, buffer + done, 4 + rest - done);
        if (w <= 0) break;
        done += w;
    }
    free(buffer);
}

/* Count a call; return the errno it is to fail with, 0 to go on, -1 to write half, -2 to fail when it is done. */
static long enter(int op) {
    long now = ++counter->calls;
    if (now <= COUNTED) counter->ops[now - 1] = op;
    if (kill_at && now == kill_at) kill(getpid(), SIGKILL);
    int room = op == CREATE || op == WRITE || op == RENAME || op == MKDIR || op == LINK || op == ALLOCATE;
    if (fail_at && (now == fail_at || (forever && now > fail_at)) && (error_number != ENOSPC || room))
        return late && now == fail_at ? -2 : error_number;
    if (short_at && op == WRITE && (now == short_at || (forever && now > short_at))) return -1;
    return 0;
}

static void leave(void) {
    if (kill_after && counter->calls == (uint64_t)kill_after) kill(getpid(), SIGKILL);
}

#define REAL(name, type) static type real; if (!real) real = (type)dlsym(RTLD_NEXT, name)
#define GUARD(kind, op, call)                                              \
    pthread_mutex_lock(&mutex);                                            \
    long verdict = kind == 1 ? enter(op) : 0;                              \
    if (verdict > 0) { pthread_mutex_unlock(&mutex); errno = verdict; return -1; } \
    long result = call
#define DONE                                                               \
    int saved = errno;                                                     \
    if (kind == 1) leave();                                                \
    if (verdict == -2) saved = error_number, result = -1;                  \
    pthread_mutex_unlock(&mutex);                                          \
    errno = saved;                                                         \
    return result

static int open_common(int dir, const char *path, int flags, mode_t mode) {
    char where[PATH_MAX];
    int kind = (flags & (O_CREAT | O_TRUNC)) && (flags & O_TMPFILE) != O_TMPFILE ? place(dir, path, where) : 0;
    if (kind != 1) return syscall(SYS_openat, dir, path, flags, mode);
    int there = syscall(SYS_faccessat, AT_FDCWD, where, F_OK) == 0;
    if (there && !(flags & O_TRUNC)) return syscall(SYS_openat, dir, path, flags, mode);
    int op = there ? TRUNCATE : CREATE;
    GUARD(kind, op, syscall(SYS_openat, dir, path, flags, mode));
    if (result >= 0) record(op, 0, where, NULL, 0, NULL, 0, 0);
    if (result >= 0 && verdict == -2) syscall(SYS_close, (int)result);
    DONE;
}

#define MODE mode_t mode = 0; if (flags & O_CREAT) { va_list list; va_start(list, flags); mode = va_arg(list, int); va_end(list); }
int open(const char *path, int flags, ...) { MODE return open_common(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE return open_common(AT_FDCWD, path, flags, mode); }
int openat(int dir, const char *path, int flags, ...) { MODE return open_common(dir, path, flags, mode); }
int openat64(int dir, const char *path, int flags, ...) { MODE return open_common(dir, path, flags, mode); }
int creat(const char *path, mode_t mode) { return open_common(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

static ssize_t write_common(int fd, const struct iovec *parts, int count, int64_t offset, int positioned) {
    char where[PATH_MAX];
    int kind = place_fd(fd, where);
    if (!kind)
        return positioned ? syscall(SYS_pwritev, fd, parts, count, offset, 0) : syscall(SYS_writev, fd, parts, count);
    int flags = syscall(SYS_fcntl, fd, F_GETFL);
    pthread_mutex_lock(&mutex);
    long verdict = kind == 1 ? enter(WRITE) : 0, result;
    if (verdict > 0) { pthread_mutex_unlock(&mutex); errno = verdict; return -1; }
    if (!positioned) offset = syscall(SYS_lseek, fd, 0, flags & O_APPEND ? SEEK_END : SEEK_CUR);
    struct iovec half;
    if (verdict == -1 && parts[0].iov_len > 1) {
        half.iov_base = parts[0].iov_base, half.iov_len = parts[0].iov_len / 2;
        parts = &half, count = 1;
    }
    result = positioned ? syscall(SYS_pwritev, fd, parts, count, offset, 0) : syscall(SYS_writev, fd, parts, count);
    if (result > 0) record(kind == 2 ? ACK : WRITE, !!(flags & O_DSYNC), where, NULL, offset, parts, count, result);
    DONE;
}

ssize_t write(int fd, const void *data, size_t length) {
    struct iovec one = {(void *)data, length};
    return write_common(fd, &one, 1, 0, 0);
}
ssize_t pwrite(int fd, const void *data, size_t length, off_t offset) {
    struct iovec one = {(void *)data, length};
    return write_common(fd, &one, 1, offset, 1);
}
ssize_t pwrite64(int fd, const void *data, size_t length, off64_t offset) { return pwrite(fd, data, length, offset); }
ssize_t writev(int fd, const struct iovec *parts, int count) { return write_common(fd, parts, count, 0, 0); }
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset) {
    return write_common(fd, parts, count, offset, 1);
}
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t offset) {
    return write_common(fd, parts, count, offset, 1);
}

static int fd_common(int fd, int op, long call, int64_t a, int64_t b, int64_t c) {
    char where[PATH_MAX];
    int kind = place_fd(fd, where);
    if (kind != 1) return syscall(call, fd, a, b, c);
    GUARD(kind, op, syscall(call, fd, a, b, c));
    if (result >= 0) record(op, 0, where, NULL, op == ALLOCATE ? (a & 1 ? 0 : b + c) : a, NULL, 0, 0);
    DONE;
}
int fsync(int fd) { return fd_common(fd, SYNC, SYS_fsync, 0, 0, 0); }
int fdatasync(int fd) { return fd_common(fd, SYNC, SYS_fdatasync, 0, 0, 0); }
int syncfs(int fd) { return fd_common(fd, SYNCFS, SYS_syncfs, 0, 0, 0); }
int ftruncate(int fd, off_t length) { return fd_common(fd, TRUNCATE, SYS_ftruncate, length, 0, 0); }
int ftruncate64(int fd, off64_t length) { return fd_common(fd, TRUNCATE, SYS_ftruncate, length, 0, 0); }
int truncate(const char *path, off_t length) {
    int fd = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CLOEXEC, 0);
    if (fd < 0) return -1;
    int result = ftruncate(fd, length), saved = errno;
    syscall(SYS_close, fd);
    errno = saved;
    return result;
}
int truncate64(const char *path, off64_t length) { return truncate(path, length); }
int fallocate(int fd, int mode, off_t offset, off_t length) {
    return fd_common(fd, ALLOCATE, SYS_fallocate, mode, offset, length);
}
int fallocate64(int fd, int mode, off64_t offset, off64_t length) { return fallocate(fd, mode, offset, length); }
int posix_fallocate(int fd, off_t offset, off_t length) { return fallocate(fd, 0, offset, length) ? errno : 0; }
int posix_fallocate64(int fd, off64_t offset, off64_t length) { return posix_fallocate(fd, offset, length); }

static int name_common(int op, long call, int dir, const char *path, int64_t a) {
    char where[PATH_MAX];
    int kind = place(dir, path, where);
    if (kind != 1) return syscall(call, dir, path, a);
    /* What is there already is EEXIST, whatever the disk's state; LMDB asks at every opening. */
    if (op == MKDIR && syscall(SYS_faccessat, AT_FDCWD, where, F_OK) == 0) return syscall(call, dir, path, a);
    GUARD(kind, op, syscall(call, dir, path, a));
    if (result >= 0) record(op, 0, where, NULL, 0, NULL, 0, 0);
    DONE;
}
int unlink(const char *path) { return name_common(UNLINK, SYS_unlinkat, AT_FDCWD, path, 0); }
int unlinkat(int dir, const char *path, int flags) {
    return name_common(flags & AT_REMOVEDIR ? RMDIR : UNLINK, SYS_unlinkat, dir, path, flags);
}
int rmdir(const char *path) { return name_common(RMDIR, SYS_unlinkat, AT_FDCWD, path, AT_REMOVEDIR); }
int mkdir(const char *path, mode_t mode) { return name_common(MKDIR, SYS_mkdirat, AT_FDCWD, path, mode); }
int mkdirat(int dir, const char *path, mode_t mode) { return name_common(MKDIR, SYS_mkdirat, dir, path, mode); }

static int two_common(int op, long call, int dir, const char *path, int dir2, const char *path2, int flags) {
    char where[PATH_MAX], where2[PATH_MAX];
    int kind = place(dir, path, where), kind2 = place(dir2, path2, where2);
    if (kind != 1 && kind2 != 1) return syscall(call, dir, path, dir2, path2, flags);
    kind = 1;
    GUARD(kind, op, syscall(call, dir, path, dir2, path2, flags));
    if (result >= 0) record(op, 0, where, where2, 0, NULL, 0, 0);
    DONE;
}
int rename(const char *a, const char *b) { return two_common(RENAME, SYS_renameat2, AT_FDCWD, a, AT_FDCWD, b, 0); }
int renameat(int d, const char *a, int e, const char *b) { return two_common(RENAME, SYS_renameat2, d, a, e, b, 0); }
int renameat2(int d, const char *a, int e, const char *b, unsigned f) {
    return two_common(RENAME, SYS_renameat2, d, a, e, b, f);
}
int link(const char *a, const char *b) { return two_common(LINK, SYS_linkat, AT_FDCWD, a, AT_FDCWD, b, 0); }
int linkat(int d, const char *a, int e, const char *b, int f) { return two_common(LINK, SYS_linkat, d, a, e, b, f); }
