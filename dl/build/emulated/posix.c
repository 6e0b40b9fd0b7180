/* What programs of POSIX call and WASI has no call for: temporary files, copies between files, and a shell that is not there. */

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

enum { TRIES = 100, RANDOM = 6, COPIED_AT_ONCE = 16384 };

/* Puts six random letters where a template says so; returns 0 if it says so nowhere. */
static int fill(char *template, char **place) {
  size_t length = strlen(template);
  *place = template + length - RANDOM;
  return length >= RANDOM && !memcmp(*place, "XXXXXX", RANDOM);
}

static void randomise(char *place) {
  static const char letters[] = "abcdefghijklmnopqrstuvwxyz0123456789";
  unsigned char bytes[RANDOM];
  getentropy(bytes, sizeof bytes);
  for (int i = 0; i < RANDOM; i++) place[i] = letters[bytes[i] % (sizeof letters - 1)];
}

int mkostemp(char *template, int flags) {
  char *place;
  if (!fill(template, &place)) {
    errno = EINVAL;
    return -1;
  }
  for (int i = 0; i < TRIES; i++) {
    randomise(place);
    int descriptor = open(template, (flags & ~O_ACCMODE) | O_RDWR | O_CREAT | O_EXCL, 0600);
    if (descriptor >= 0 || errno != EEXIST) return descriptor;
  }
  return -1;
}

int mkstemp(char *template) { return mkostemp(template, 0); }

char *mkdtemp(char *template) {
  char *place;
  if (!fill(template, &place)) {
    errno = EINVAL;
    return 0;
  }
  for (int i = 0; i < TRIES; i++) {
    randomise(place);
    if (!mkdir(template, 0700)) return template;
    if (errno != EEXIST) return 0;
  }
  return 0;
}

FILE *tmpfile(void) {
  char name[] = "/tmp/tmp-XXXXXX";
  int descriptor = mkstemp(name);
  if (descriptor < 0) return 0;
  unlink(name);
  FILE *file = fdopen(descriptor, "w+");
  if (!file) close(descriptor);
  return file;
}

char *tmpnam(char *buffer) {
  static char own[L_tmpnam];
  char name[] = "/tmp/tmp-XXXXXX";
  for (int i = 0; i < TRIES; i++) {
    randomise(name + sizeof name - 1 - RANDOM);
    if (access(name, F_OK)) return strcpy(buffer ? buffer : own, name);
  }
  return 0;
}

/* There is no shell, which is what 0 says for no command. */
int system(const char *command) {
  if (!command) return 0;
  errno = ENOSYS;
  return -1;
}

/* As on Linux: from `*at` on, if given, which then moves in place of the file's own position. Ends early where a write does. */
ssize_t sendfile(int to, int from, off_t *at, size_t count) {
  char bytes[COPIED_AT_ONCE];
  size_t copied = 0;
  while (copied < count) {
    size_t wanted = count - copied < sizeof bytes ? count - copied : sizeof bytes;
    ssize_t got = at ? pread(from, bytes, wanted, *at) : read(from, bytes, wanted);
    if (got <= 0) return got < 0 && !copied ? -1 : (ssize_t)copied;
    ssize_t written = write(to, bytes, got);
    ssize_t taken = written < 0 ? 0 : written;
    if (at) *at += taken;
    else if (taken < got) lseek(from, taken - got, SEEK_CUR);
    copied += taken;
    if (taken < got) return written < 0 && !copied ? -1 : (ssize_t)copied;
  }
  return copied;
}
