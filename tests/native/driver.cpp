// Runs functions of a library of kernels for a program that cannot load it: one for another processor, under an emulator,
// or one with sanitizers.   driver LIBRARY < requests > answers
//
// A request is a row of int64: the number of blocks, the size of each in bytes; the number of pointers, and of each the
// block and the place in it where it is written, then the block and the place that it points to; the number of arguments,
// and of each a block and a place, or -1 and a value; then the bytes of the blocks, the first of which is the name of the
// function. The answer is what the function returned, then the bytes of the blocks.
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

namespace {

using Function = int64_t (*)(int64_t, int64_t, int64_t, int64_t);
constexpr size_t kArguments = 4;

[[noreturn]] void fail(const std::string& reason) {
  std::fprintf(stderr, "driver: %s\n", reason.c_str());
  std::exit(1);
}

void read(void* target, size_t size) {
  if (size != 0 && std::fread(target, 1, size, stdin) != size) fail("the request ends early");
}

int64_t number() {
  int64_t value;
  read(&value, sizeof value);
  return value;
}

void write(const void* source, size_t size) {
  if (size != 0 && std::fwrite(source, 1, size, stdout) != size) fail("nobody reads the answer");
}

// Memory of exactly the size that was asked for, so that a sanitizer sees what reads beyond it.
struct Block {
  size_t size;
  std::unique_ptr<char[]> bytes;
};

void answer(void* library, int64_t num_blocks) {
  std::vector<Block> blocks(num_blocks);
  for (Block& block : blocks) {
    block.size = number();
    block.bytes.reset(new char[block.size]);
  }
  struct Pointer {
    int64_t block, place, to_block, to_place;
  };
  std::vector<Pointer> pointers(number());
  for (Pointer& pointer : pointers) pointer = {number(), number(), number(), number()};
  const size_t num_arguments = number();
  if (num_arguments > kArguments) fail("too many arguments");
  int64_t arguments[kArguments] = {};
  for (size_t i = 0; i < num_arguments; ++i) {
    const int64_t block = number(), value = number();
    arguments[i] = block < 0 ? value : reinterpret_cast<int64_t>(blocks.at(block).bytes.get() + value);
  }
  for (Block& block : blocks) read(block.bytes.get(), block.size);
  for (const Pointer& pointer : pointers) {
    char* const to = blocks.at(pointer.to_block).bytes.get() + pointer.to_place;
    std::memcpy(blocks.at(pointer.block).bytes.get() + pointer.place, &to, sizeof to);
  }
  const std::string name(blocks.at(0).bytes.get(), blocks[0].size);
  void* const function = dlsym(library, name.c_str());
  if (function == nullptr) fail("the library has no " + name);
  const int64_t result = reinterpret_cast<Function>(function)(arguments[0], arguments[1], arguments[2], arguments[3]);
  write(&result, sizeof result);
  for (const Block& block : blocks) write(block.bytes.get(), block.size);
  if (std::fflush(stdout) != 0) fail("nobody reads the answer");
}

}  // namespace

int main(int count, char** words) {
  if (count != 2) fail("usage: driver LIBRARY < requests > answers");
  void* const library = dlopen(words[1], RTLD_NOW);
  if (library == nullptr) fail(dlerror());
  int64_t num_blocks;
  while (std::fread(&num_blocks, sizeof num_blocks, 1, stdin) == 1) answer(library, num_blocks);
}
