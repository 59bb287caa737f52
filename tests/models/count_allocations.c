/* Counts what a process allocates, where glibc loads it first (LD_PRELOAD).
 *
 * A process reads the counts through ctypes; malloc itself is glibc's, under its other names.
 */
#include <errno.h>
#include <stddef.h>

/* Python keeps blocks of at most this size in arenas of its own, which are mapped. */
enum { SMALL = 512 };

static _Atomic long all_blocks, large_blocks;

long count_of_blocks(void) { return all_blocks; }
long count_of_large_blocks(void) { return large_blocks; }

extern void* __libc_malloc(size_t);
extern void* __libc_calloc(size_t, size_t);
extern void* __libc_realloc(void*, size_t);
extern void* __libc_memalign(size_t, size_t);

static void count(size_t size) {
  ++all_blocks;
  if (size > SMALL) ++large_blocks;
}

void* malloc(size_t size) {
  count(size);
  return __libc_malloc(size);
}

void* calloc(size_t number, size_t size) {
  count(number * size);
  return __libc_calloc(number, size);
}

void* realloc(void* block, size_t size) {
  count(size);
  return __libc_realloc(block, size);
}

void* memalign(size_t alignment, size_t size) {
  count(size);
  return __libc_memalign(alignment, size);
}

void* aligned_alloc(size_t alignment, size_t size) { return memalign(alignment, size); }

int posix_memalign(void** block, size_t alignment, size_t size) {
  void* made = memalign(alignment, size);
  if (made == NULL) return ENOMEM;
  *block = made;
  return 0;
}
