#include "core/attention/attention.hpp"

#include <algorithm>
#include <atomic>

#include "core/aligned_bytes.hpp"
#include "core/parallel.hpp"
#include "core/round_up.hpp"
#include "core/simd/kernels.hpp"

namespace clara {

namespace {

constexpr int64_t kLeastQueries = 64;   // fewer are not worth packing keys and values again
constexpr int64_t kPiecesOfThread = 4;  // documents, and the parts of one, differ in length

/// Documents with so many queries at most. Keys behind a part's last query are not seen by any of
/// its own, so without these it is a document, too.
std::vector<AttendedDocument> cut(const std::vector<AttendedDocument>& documents, int64_t queries) {
    std::vector<AttendedDocument> parts;
    for (const AttendedDocument& each : documents) {
        for (int64_t first = 0; first < each.queries; first += queries) {
            const int64_t last = std::min(each.queries, first + queries);
            parts.push_back({each.first_query + first, last - first, each.first_row,
                             each.rows - (each.queries - last)});
        }
    }
    return parts;
}

}  // namespace

bool attends_bfloat16() { return kernels().attention != nullptr; }

void packed_attention(const PackedAttention& call, const std::vector<AttendedDocument>& documents,
                      int threads) {
    const AttentionKernels& kernel = *kernels().attention;
    int64_t longest = 0, queries = 0;
    double work = 0;
    for (const AttendedDocument& each : documents) {
        longest = std::max(longest, each.rows);
        queries += each.queries;
        work += static_cast<double>(each.queries) * static_cast<double>(each.rows);
    }
    constexpr double kWorkOfElement = 16;  // products in the time of one element of other work
    work *= static_cast<double>(call.heads * call.width) / kWorkOfElement;
    if (longest == 0 || queries == 0) return;
    const int parts = useful_threads(work, queries * call.kv_heads, threads);
    const int64_t shares = kPiecesOfThread * parts;
    const int64_t share = div_up(queries * call.kv_heads, shares);
    const std::vector<AttendedDocument> pieces =
        cut(documents, parts == 1 ? queries : std::max(kLeastQueries, share));
    const int64_t count = static_cast<int64_t>(pieces.size()) * call.kv_heads;
    // Who is done takes the next one.
    std::atomic<int64_t> next{0};
    for_each_part(parts, parts, [&](int /*part*/, int64_t /*begin*/, int64_t /*end*/) {
        AlignedBytes scratch(kernel.scratch_bytes(call, longest));
        for (int64_t piece = next++; piece < count; piece = next++) {
            kernel.attend(call, pieces[piece / call.kv_heads], piece % call.kv_heads,
                          scratch.data());
        }
    });
}

}  // namespace clara
