// Searches of csrc/core, of every kind and size, its calls on several threads, its decoder, its
// functions of rows and its linear layers and attention in bfloat16, for sanitizers to watch. Each
// result is compared with float64 or, bit for bit, with one that was. CLARA_SIMD names the
// instruction set as ever.
//
//   search            runs every check; exits with 1 at the first thing that is wrong
//   search ks ties    runs these
//   search --list     names the instruction sets of this processor

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bfloat16.hpp"
#include "core/simd/kernels.hpp"
#include "decoder.hpp"
#include "elementwise.hpp"
#include "parallel.hpp"
#include "search.hpp"
#include "truth.hpp"

namespace clara_test {
namespace {

/// An instruction set that is not there.
void unknown_kernels() {
    const std::string used = clara::kernels().name;
    bool thrown = false;
    setenv("CLARA_SIMD", "none", 1);
    try {
        clara::kernels();
    } catch (const std::invalid_argument& error) {
        thrown = std::string(error.what()).find(used) != std::string::npos;
    }
    setenv("CLARA_SIMD", used.c_str(), 1);
    expect(thrown, "CLARA_SIMD=none was accepted, or what is available was not told");
}

int run(const std::vector<std::string>& wanted) {
    using Check = std::pair<const char*, void (*)()>;
    constexpr Check kChecks[] = {
        {"empty", empty},
        {"lengths", lengths},
        {"page_ends", page_ends},
        {"counts", counts},
        {"large", large},
        {"ks", ks},
        {"ties", ties},
        {"special_values", special_values},
        {"concurrent_calls", concurrent_calls},
        {"each_part_once", each_part_once},
        {"failing_part", failing_part},
        {"parts_at_once", parts_at_once},
        {"members_wait", members_wait},
        {"fork_during_calls", fork_during_calls},
        {"unknown_kernels", unknown_kernels},
        {"products", products},
        {"infinite_weights", infinite_weights},
        {"decoder_steps", decoder_steps},
        {"elementwise", elementwise},
        {"bfloat16", bfloat16},
    };
    const std::string simd = clara::kernels().name;
    for (const auto& [name, check] : kChecks) {
        const bool all = wanted.empty();
        if (!all && std::find(wanted.begin(), wanted.end(), name) == wanted.end()) continue;
        const auto start = std::chrono::steady_clock::now();
        try {
            check();
        } catch (const std::exception& error) {
            std::fprintf(stderr, "%s, %s: %s\n", simd.c_str(), name, error.what());
            return 1;
        }
        const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
        std::printf("%-17s %6.2f s\n", name, taken.count());
        std::fflush(stdout);
    }
    return 0;
}

}  // namespace
}  // namespace clara_test

int main(int count, char** arguments) {
    if (count == 2 && std::string(arguments[1]) == "--list") {
        for (const clara::Kernels* each : clara::available_kernels()) std::puts(each->name);
        return 0;
    }
    return clara_test::run({arguments + 1, arguments + count});
}
