#include "core/simd/kernels.hpp"

#include <cstdlib>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(CLARA_AMX)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace clara {

#if defined(__x86_64__)
namespace {

/// Clang 14 does not know __builtin_cpu_supports("f16c").
bool has_f16c() {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}

}  // namespace

extern const Kernels kSse2, kAvx2, kAvx512, kAvx512Vnni;

#if defined(CLARA_AVX512BF16)
extern const ScreenKernels kAvx512Screen;
extern const LinearKernels kAvx512Linear;
extern const LinearGradientKernels kAvx512LinearGradient;
extern const ThinProductKernels kAvx512ThinProduct;
extern const AttentionKernels kAvx512Attention;
extern const AttentionGradientKernels kAvx512AttentionGradient;

namespace {

/// Whether products of bfloat16 values are twice as fast as those of float32, as on AMD's
/// processors from Zen 4 on. On Intel's they take as long, and AMX is what is faster.
bool has_fast_bfloat16() {
    return __builtin_cpu_is("amd") != 0 && __builtin_cpu_supports("avx512bf16") != 0;
}

/// AVX-512 with VNNI, a screen, and linear layers and attention in bfloat16.
const Kernels& avx512bf16() {
    static const Kernels made = [] {
        Kernels kernels = kAvx512Vnni;
        kernels.name = "avx512bf16";
        kernels.screen = &kAvx512Screen;
        kernels.linear = &kAvx512Linear;
        kernels.linear_gradient = &kAvx512LinearGradient;
        kernels.thin_product = &kAvx512ThinProduct;
        kernels.attention = &kAvx512Attention;
        kernels.attention_gradient = &kAvx512AttentionGradient;
        return kernels;
    }();
    return made;
}

}  // namespace
#endif

#if defined(CLARA_AMX)
extern const PanelKernels kAmxPanels;

namespace {

/// Whether the processor has AMX with bfloat16, and Linux lets this process use its registers,
/// which it saves for those only that ask for it. Threads and forked processes need not ask again.
///
/// It is asked even where CLARA_SIMD names a lower level: build_info() lists what is available, and
/// only the answer tells. Nothing is slower for it as long as no tile is used, but Linux refuses
/// alternate signal stacks from then on that are too small for the registers (about 11 KiB).
bool has_amx() {
    constexpr unsigned kBfloat16 = 1u << 22, kTiles = 1u << 24;  // in edx of leaf 7
    constexpr int kRequestPermission = 0x1023, kTileData = 18;   // of arch_prctl
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
    if ((edx & kBfloat16) == 0 || (edx & kTiles) == 0) return false;
    // Fails where the system has not enabled the registers (bits 17 and 18 of XCR0), too. The C
    // library has no function for it. NOLINTNEXTLINE(cppcoreguidelines-pro-type-vararg)
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

/// AVX-512 with VNNI, and panels.
const Kernels& amx() {
    static const Kernels made = [] {
        Kernels kernels = kAvx512Vnni;
        kernels.name = "amx";
        kernels.panels = &kAmxPanels;
        return kernels;
    }();
    return made;
}

}  // namespace
#endif

const std::vector<const Kernels*>& available_kernels() {
    static const std::vector<const Kernels*> available = [] {
        std::vector<const Kernels*> found{&kSse2};
        // These also ask the operating system whether it saves the registers.
        const bool avx2 =
            __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
        if (avx2) found.push_back(&kAvx2);
        const bool avx512 =
            avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
        if (avx512) found.push_back(&kAvx512);
        const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
        if (vnni) found.push_back(&kAvx512Vnni);
#if defined(CLARA_AVX512BF16)
        if (vnni && has_fast_bfloat16()) found.push_back(&avx512bf16());
#endif
#if defined(CLARA_AMX)
        if (vnni && has_amx()) found.push_back(&amx());
#endif
        return found;
    }();
    return available;
}
#elif defined(__aarch64__)
extern const Kernels kNeon;

const std::vector<const Kernels*>& available_kernels() {
    static const std::vector<const Kernels*> available{&kNeon};
    return available;
}
#else
extern const Kernels kPortable;

const std::vector<const Kernels*>& available_kernels() {
    static const std::vector<const Kernels*> available{&kPortable};
    return available;
}
#endif

TileKernel Kernels::reading(DataType type) const {
    switch (type) {
        case DataType::float16:
            return widen_float16;
        case DataType::bfloat16:
            return widen_bfloat16;
        case DataType::int8:
            return int8;
        case DataType::float32:
            break;
    }
    return float32;
}

const Kernels& kernels() {
    const char* wanted = std::getenv("CLARA_SIMD");
    if (wanted == nullptr || *wanted == '\0') return *available_kernels().back();
    std::string names;
    for (const Kernels* each : available_kernels()) {
        if (wanted == std::string(each->name)) return *each;
        names += (names.empty() ? "" : ", ") + std::string(each->name);
    }
    throw std::invalid_argument("CLARA_SIMD must be one of " + names + " on this processor, got '" +
                                wanted + "'");
}

}  // namespace clara
