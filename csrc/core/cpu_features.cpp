#include "core/cpu_features.hpp"

namespace clara {
namespace {

std::string baseline() {
#if defined(__x86_64__) || defined(_M_X64)
    return "x86-64";
#elif defined(__aarch64__) || defined(_M_ARM64)
    return "aarch64";
#else
    return "generic";
#endif
}

}  // namespace

std::vector<std::string> compiled_simd() {
    std::vector<std::string> names{baseline()};
#if defined(__F16C__)
    names.push_back("f16c");
#endif
#if defined(__FMA__)
    names.push_back("fma");
#endif
#if defined(__AVX2__)
    names.push_back("avx2");
#endif
#if defined(__AVX512F__)
    names.push_back("avx512f");
#endif
#if defined(__AVX512BW__)
    names.push_back("avx512bw");
#endif
#if defined(__AVX512BF16__)
    names.push_back("avx512bf16");
#endif
#if defined(__ARM_NEON)
    names.push_back("neon");
#endif
    return names;
}

std::vector<std::string> detected_simd() {
    std::vector<std::string> names{baseline()};
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
    if (__builtin_cpu_supports("f16c")) names.push_back("f16c");
    if (__builtin_cpu_supports("fma")) names.push_back("fma");
    if (__builtin_cpu_supports("avx2")) names.push_back("avx2");
    if (__builtin_cpu_supports("avx512f")) names.push_back("avx512f");
    if (__builtin_cpu_supports("avx512bw")) names.push_back("avx512bw");
    if (__builtin_cpu_supports("avx512bf16")) names.push_back("avx512bf16");
#elif defined(__ARM_NEON)
    names.push_back("neon");
#endif
    return names;
}

}  // namespace clara
