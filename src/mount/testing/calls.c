// System calls that node has no name for, one a line on standard input, an answer a line on standard output: a number, or "error" and errno.
//   open FILE r|w      map LENGTH r|w      set AT BYTE      get AT      sync
//   lock r|w|u START LENGTH 0|1 (wait)     flock s|x|u      tell
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <unistd.h>

static int fd = -1;
static volatile unsigned char *mapped;
static long length;

static long act(const char *line) {
  char name[512], how;
  long a, b;
  int wait;
  if (sscanf(line, "open %511s %c", name, &how) == 2) return fd = open(name, how == 'w' ? O_RDWR : O_RDONLY);
  if (sscanf(line, "map %ld %c", &a, &how) == 2) {
    void *at = mmap(NULL, a, how == 'w' ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED) return -1;
    mapped = at;
    length = a;
    return 0;
  }
  if (sscanf(line, "set %ld %ld", &a, &b) == 2) return mapped[a] = (unsigned char)b;
  if (sscanf(line, "get %ld", &a) == 1) return mapped[a];
  if (strncmp(line, "sync", 4) == 0) return msync((void *)mapped, length, MS_SYNC);
  if (sscanf(line, "lock %c %ld %ld %d", &how, &a, &b, &wait) == 4) {
    struct flock lock = {.l_type = how == 'r' ? F_RDLCK : how == 'w' ? F_WRLCK : F_UNLCK, .l_whence = SEEK_SET, .l_start = a, .l_len = b};
    return fcntl(fd, wait ? F_SETLKW : F_SETLK, &lock);
  }
  if (sscanf(line, "flock %c", &how) == 1) return flock(fd, (how == 's' ? LOCK_SH : how == 'x' ? LOCK_EX : LOCK_UN) | LOCK_NB);
  // Who stands against a write lock of the whole file: its type, or -2.
  if (strncmp(line, "tell", 4) == 0) {
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    if (fcntl(fd, F_GETLK, &lock) != 0) return -1;
    return lock.l_type == F_UNLCK ? -2 : lock.l_type;
  }
  errno = ENOSYS;
  return -1;
}

int main(void) {
  char line[1024];
  setvbuf(stdout, NULL, _IOLBF, 0);
  while (fgets(line, sizeof line, stdin) != NULL) {
    errno = 0;
    long answer = act(line);
    if (answer == -1) printf("error %d\n", errno);
    else printf("%ld\n", answer);
  }
  return 0;
}
