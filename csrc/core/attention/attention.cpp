#include "core/attention/attention.hpp"

#include <algorithm>
#include <atomic>

#include "core/aligned_bytes.hpp"
#include "core/parallel.hpp"
#include "core/simd/kernels.hpp"

namespace clara {

bool attends_bfloat16() { return kernels().attention != nullptr; }

void packed_attention(const PackedAttention& call, const std::vector<AttendedDocument>& documents,
                      int threads) {
    const AttentionKernels& kernel = *kernels().attention;
    int64_t longest = 0;
    double work = 0;
    for (const AttendedDocument& each : documents) {
        longest = std::max(longest, each.rows);
        work += static_cast<double>(each.queries) * static_cast<double>(each.rows);
    }
    constexpr double kWorkOfElement = 16;  // products in the time of one element of other work
    work *= static_cast<double>(call.heads * call.width) / kWorkOfElement;
    const int64_t pieces = static_cast<int64_t>(documents.size()) * call.kv_heads;
    if (longest == 0 || pieces == 0) return;
    // Documents differ in length: who is done takes the next one.
    std::atomic<int64_t> next{0};
    const int parts = useful_threads(work, pieces, threads);
    for_each_part(parts, parts, [&](int /*part*/, int64_t /*begin*/, int64_t /*end*/) {
        AlignedBytes scratch(kernel.scratch_bytes(call, longest));
        for (int64_t piece = next++; piece < pieces; piece = next++) {
            const AttendedDocument& document = documents[piece / call.kv_heads];
            if (document.rows == 0 || document.queries == 0) continue;
            kernel.attend(call, document, piece % call.kv_heads, scratch.data());
        }
    });
}

}  // namespace clara
