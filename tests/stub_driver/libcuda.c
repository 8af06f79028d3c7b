// A CUDA driver that launches nothing: it reads the machine code that it is given as far as names and
// parameters go, and keeps what it was asked to launch, for tests/test_launcher.py.
#include <elf.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_LAUNCHES = 64, MOST_PARAMETERS = 64 };
enum { INVALID_VALUE = 1, INVALID_IMAGE = 200, INVALID_CONTEXT = 201, NOT_FOUND = 500 };

struct function {
  char name[256];
  int64_t count, sizes[MOST_PARAMETERS];
  int64_t shared_bytes, prefers_shared, loaded_in_capture_mode;
};

struct launch {
  int64_t function, grid[3], block[3], shared_bytes, stream, dependent, count;
  int64_t parameters[MOST_PARAMETERS];
};

static struct launch launches[MOST_LAUNCHES];
static int64_t launched, loaded;
static int answer, tells_parameters = 1;
static int64_t context;  // of this thread, as far as one thread goes; 0: none
static int capture_mode;

struct config {
  unsigned grid[3], block[3], shared_bytes;
  void* stream;
  struct {
    int id;
    char padding[4];
    union {
      int32_t value;
      char size[64];
    };
  }* attributes;
  unsigned count;
};

int cuLaunchKernelEx(const struct config* config, const struct function* function,
                     void** parameters, void** extra) {
  if (answer != 0) return answer;
  if (context == 0) return INVALID_CONTEXT;
  struct launch* kept = &launches[launched++ % MOST_LAUNCHES];
  *kept = (struct launch){(int64_t)function,
                          {config->grid[0], config->grid[1], config->grid[2]},
                          {config->block[0], config->block[1], config->block[2]},
                          config->shared_bytes,
                          (int64_t)config->stream,
                          0,
                          function->count,
                          {0}};
  for (unsigned i = 0; i < config->count; ++i) {
    const int serialization = config->attributes[i].id == 6;  // programmatic stream serialization
    if (serialization) kept->dependent = config->attributes[i].value;
  }
  for (int64_t i = 0; i < function->count; ++i) {
    memcpy(&kept->parameters[i], parameters[i], (size_t)function->sizes[i]);
  }
  return 0;
}

// The sizes of a kernel's parameters, out of its section .nv.info.NAME.
static void read_parameters(struct function* function, const unsigned char* at, size_t bytes) {
  const unsigned char* const end = at + bytes;
  while (at + 4 <= end) {
    const unsigned format = at[0], attribute = at[1];
    uint16_t size;
    memcpy(&size, at + 2, 2);
    if (format == 4 && attribute == 0x17) {  // EIATTR_KPARAM_INFO
      uint16_t ordinal;
      uint32_t flags;
      memcpy(&ordinal, at + 8, 2);
      memcpy(&flags, at + 12, 4);
      function->sizes[ordinal] = flags >> 18;
      if (ordinal >= function->count) function->count = ordinal + 1;
    }
    at += format == 4 ? 4 + size : 4;
  }
}

int cuModuleLoadData(void** module, const void* image) {
  if (context == 0) return INVALID_CONTEXT;
  if (memcmp(image, ELFMAG, SELFMAG) != 0) return INVALID_IMAGE;
  *module = (void*)image;
  return 0;
}

int cuModuleGetFunction(struct function** found, const void* module, const char* name) {
  const unsigned char* const image = module;
  const Elf64_Ehdr* header = module;
  const Elf64_Shdr* sections = (const void*)(image + header->e_shoff);
  const char* names = (const char*)image + sections[header->e_shstrndx].sh_offset;
  for (int i = 0; i < header->e_shnum; ++i) {
    const char* section = names + sections[i].sh_name;
    if (strncmp(section, ".nv.info.", 9) != 0 || strcmp(section + 9, name) != 0) continue;
    struct function* function = calloc(1, sizeof(*function));
    strncpy(function->name, name, sizeof(function->name) - 1);
    read_parameters(function, image + sections[i].sh_offset, sections[i].sh_size);
    function->loaded_in_capture_mode = capture_mode;
    ++loaded;
    *found = function;
    return 0;
  }
  return NOT_FOUND;
}

int cuFuncSetAttribute(struct function* function, int attribute, int value) {
  if (attribute != 8) return INVALID_VALUE;
  function->shared_bytes = value;
  return 0;
}

int cuFuncSetCacheConfig(struct function* function, int preference) {
  function->prefers_shared = preference == 1;
  return 0;
}

int cuFuncLoad(struct function* function) { return 0; }

int cuFuncGetParamInfo(const struct function* function, size_t index, size_t* offset, size_t* size) {
  if (!tells_parameters || index >= (size_t)function->count) return INVALID_VALUE;
  *size = (size_t)function->sizes[index];
  return 0;
}

int cuThreadExchangeStreamCaptureMode(int* mode) {
  const int was = capture_mode;
  capture_mode = *mode;
  *mode = was;
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

int cuCtxGetCurrent(void** current) {
  *current = (void*)context;
  return 0;
}

// The context, which is then gone.
int64_t stub_drop_context(void) {
  const int64_t was = context;
  context = 0;
  return was;
}

void stub_answer(int error) { answer = error; }

// As a driver before CUDA 12.4, which has no cuFuncGetParamInfo.
void stub_tell_parameters(int yes) { tells_parameters = yes; }

int64_t stub_capture_mode(void) { return capture_mode; }

// How many functions have been loaded.
int64_t stub_loaded(void) { return loaded; }

// How many launches there have been since the last call; copies them.
int64_t stub_take(struct launch* into) {
  const int64_t count = launched;
  memcpy(into, launches, sizeof(launches));
  launched = 0;
  return count;
}
