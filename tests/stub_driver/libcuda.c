// A CUDA driver that launches nothing: it keeps what it was asked to, for tests/test_launcher.py.
// A function's handle is the address of the sizes of its parameters, ended by a zero.
#include <stdint.h>
#include <string.h>

enum { MOST_LAUNCHES = 64, MOST_PARAMETERS = 64 };

struct launch {
  int64_t function, grid[3], block[3], shared_bytes, stream, count;
  int64_t parameters[MOST_PARAMETERS];
};

static struct launch launches[MOST_LAUNCHES];
static int64_t launched;
static int answer;
static int64_t context;  // of this thread, as far as one thread goes; 0: none

int cuLaunchKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                   unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,
                   void* stream, void** parameters, void** extra) {
  if (answer != 0) return answer;
  if (context == 0) return 201;  // CUDA_ERROR_INVALID_CONTEXT
  struct launch* kept = &launches[launched++ % MOST_LAUNCHES];
  *kept = (struct launch){(int64_t)function,
                          {grid_x, grid_y, grid_z},
                          {block_x, block_y, block_z},
                          shared_bytes,
                          (int64_t)stream,
                          0,
                          {0}};
  for (const int64_t* size = function; *size != 0; ++size) {
    memcpy(&kept->parameters[kept->count], parameters[kept->count], (size_t)*size);
    ++kept->count;
  }
  return 0;
}

int cuGetErrorName(int error, const char** name) {
  *name = "CUDA_ERROR_STUB";
  return 0;
}

int cuDevicePrimaryCtxRetain(void** retained, int device) {
  *retained = (void*)(int64_t)(1000 + device);
  return 0;
}

int cuCtxSetCurrent(void* made_current) {
  context = (int64_t)made_current;
  return 0;
}

// The context, which is then gone.
int64_t stub_drop_context(void) {
  const int64_t was = context;
  context = 0;
  return was;
}

void stub_answer(int error) { answer = error; }

// How many launches there have been since the last call; copies them.
int64_t stub_take(struct launch* into) {
  const int64_t count = launched;
  memcpy(into, launches, sizeof(launches));
  launched = 0;
  return count;
}
