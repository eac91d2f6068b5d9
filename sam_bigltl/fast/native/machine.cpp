// Which of the levels of toolchain.py this processor and its operating system run. Compiled for the plainest processor.
#include <cstdint>

#if defined(_WIN32)
#define BIGLTL_EXPORT extern "C" __declspec(dllexport)
#else
#define BIGLTL_EXPORT extern "C" __attribute__((visibility("default")))
#endif

#if defined(__x86_64__) || defined(_M_X64)
#if defined(_MSC_VER) && !defined(__clang__)
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#elif defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#endif

namespace {

// Bits of the levels, in the order of LEVELS in toolchain.py.
enum Level : uint32_t { kAvx2, kAvx2Vnni, kAvx2VnniVl, kAvx512, kAvx512Vnni, kAvx512Bf16, kNeon, kNeonDot, kNeonI8mm };

constexpr uint32_t bit(Level level, bool runs) { return runs ? 1u << level : 0; }

#if defined(__x86_64__) || defined(_M_X64)

struct Registers {
  uint32_t eax, ebx, ecx, edx;
};

Registers cpuid(uint32_t leaf, uint32_t part) {
  Registers r{};
#if defined(_MSC_VER) && !defined(__clang__)
  int found[4];
  __cpuidex(found, static_cast<int>(leaf), static_cast<int>(part));
  r = {static_cast<uint32_t>(found[0]), static_cast<uint32_t>(found[1]), static_cast<uint32_t>(found[2]),
       static_cast<uint32_t>(found[3])};
#else
  __cpuid_count(leaf, part, r.eax, r.ebx, r.ecx, r.edx);
#endif
  return r;
}

// The registers that the operating system keeps when it changes threads (XCR0).
uint32_t kept_registers() {
#if defined(_MSC_VER) && !defined(__clang__)
  return static_cast<uint32_t>(_xgetbv(0));
#else
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
#endif
}

uint32_t levels() {
  const auto has = [](uint32_t word, int number) { return (word >> number & 1) != 0; };
  const uint32_t highest = cpuid(0, 0).eax;
  const uint32_t basic = cpuid(1, 0).ecx;
  if (highest < 7 || !has(basic, 27)) return 0;  // OSXSAVE
  const uint32_t kept = kept_registers();
  const bool ymm = (kept & 0x06) == 0x06, zmm = (kept & 0xe6) == 0xe6;
  const Registers seven = cpuid(7, 0);
  const uint32_t more = seven.eax >= 1 ? cpuid(7, 1).eax : 0;
  // FMA, AVX, F16C; AVX2
  const bool avx2 = ymm && has(basic, 12) && has(basic, 28) && has(basic, 29) && has(seven.ebx, 5);
  // F, DQ, BW, VL
  const bool avx512 =
      avx2 && zmm && has(seven.ebx, 16) && has(seven.ebx, 17) && has(seven.ebx, 30) && has(seven.ebx, 31);
  const bool avx512_vnni = avx512 && has(seven.ecx, 11);
  return bit(kAvx2, avx2) | bit(kAvx2Vnni, avx2 && has(more, 4)) | bit(kAvx2VnniVl, avx512_vnni) |
         bit(kAvx512, avx512) | bit(kAvx512Vnni, avx512_vnni) | bit(kAvx512Bf16, avx512_vnni && has(more, 5));
}

#elif defined(__aarch64__) || defined(_M_ARM64)

#if defined(__linux__)
bool has_dot() { return (getauxval(AT_HWCAP) >> 20 & 1) != 0; }    // HWCAP_ASIMDDP
bool has_i8mm() { return (getauxval(AT_HWCAP2) >> 13 & 1) != 0; }  // HWCAP2_I8MM
#elif defined(__APPLE__)
bool has(const char* name) {
  int found = 0;
  size_t size = sizeof found;
  return sysctlbyname(name, &found, &size, nullptr, 0) == 0 && found != 0;
}
bool has_dot() { return has("hw.optional.arm.FEAT_DotProd"); }
bool has_i8mm() { return has("hw.optional.arm.FEAT_I8MM"); }
#elif defined(_WIN32)
bool has_dot() { return IsProcessorFeaturePresent(43) != 0; }   // PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE
bool has_i8mm() { return IsProcessorFeaturePresent(66) != 0; }  // PF_ARM_V82_I8MM_INSTRUCTIONS_AVAILABLE
#else
bool has_dot() { return false; }
bool has_i8mm() { return false; }
#endif

uint32_t levels() {
  const bool dot = has_dot();
  return bit(kNeon, true) | bit(kNeonDot, dot) | bit(kNeonI8mm, dot && has_i8mm());
}

#else

uint32_t levels() { return 0; }

#endif

}  // namespace

// The levels that this machine runs, a bit for each.
BIGLTL_EXPORT uint32_t bigltl_machine_levels() { return levels(); }

// The levels that are in this library.
BIGLTL_EXPORT uint32_t bigltl_library_levels() { return BIGLTL_LIBRARY_LEVELS; }
