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

constexpr double kWorkOfElement = 16;  // products in the time of one element of other work

/// Of a document's heads that share one of keys, in elements.
double work_of(const AttentionInputs& inputs, const AttendedDocument& document) {
    const int64_t columns = inputs.shared() * inputs.width;
    return static_cast<double>(document.queries) * static_cast<double>(document.rows) *
           static_cast<double>(columns) / kWorkOfElement;
}

/// Runs a kernel for all heads of keys of each document. Who is done takes the next one.
template <class Call>
void for_each_head(const Call& call, const std::vector<AttendedDocument>& documents,
                   void (*kernel)(const Call&, const AttendedDocument&, int64_t kv_head,
                                  char* scratch),
                   int64_t scratch_bytes, int threads) {
    const int64_t heads = call.inputs.kv_heads;
    const int64_t count = static_cast<int64_t>(documents.size()) * heads;
    std::atomic<int64_t> next{0};
    for_each_part(threads, threads, [&](int /*part*/, int64_t /*begin*/, int64_t /*end*/) {
        AlignedBytes scratch(scratch_bytes);
        for (int64_t piece = next++; piece < count; piece = next++) {
            kernel(call, documents[piece / heads], piece % heads, scratch.data());
        }
    });
}

}  // namespace

bool attends_bfloat16() { return kernels().attention != nullptr; }

void packed_attention(const PackedAttention& call, const std::vector<AttendedDocument>& documents,
                      int threads) {
    const AttentionKernels& kernel = *kernels().attention;
    const AttentionInputs& inputs = call.inputs;
    int64_t longest = 0, queries = 0;
    double work = 0;
    for (const AttendedDocument& each : documents) {
        longest = std::max(longest, each.rows);
        queries += each.queries;
        work += work_of(inputs, each) * static_cast<double>(inputs.kv_heads);
    }
    if (longest == 0 || queries == 0) return;
    const int parts = useful_threads(work, queries * inputs.kv_heads, threads);
    const int64_t shares = kPiecesOfThread * parts;
    const int64_t share = div_up(queries * inputs.kv_heads, shares);
    const std::vector<AttendedDocument> pieces =
        cut(documents, parts == 1 ? queries : std::max(kLeastQueries, share));
    for_each_head(call, pieces, kernel.attend, kernel.scratch_bytes(inputs, longest), parts);
}

void packed_attention_gradient(const AttentionGradient& call,
                               std::vector<AttendedDocument> documents, int threads) {
    const AttentionGradientKernels& kernel = *kernels().attention_gradient;
    const AttentionInputs& inputs = call.inputs;
    int64_t longest = 0;
    double work = 0;
    for (const AttendedDocument& each : documents) {
        longest = std::max(longest, each.rows);
        work += work_of(inputs, each) * static_cast<double>(inputs.kv_heads);
    }
    // A document's gradients of keys are sums over all of its queries, so none is cut. The longest
    // come first, lest one thread begins with them when the others are done.
    std::sort(documents.begin(), documents.end(), [&](const auto& one, const auto& other) {
        return work_of(inputs, one) > work_of(inputs, other);
    });
    const int64_t count = static_cast<int64_t>(documents.size()) * inputs.kv_heads;
    if (count == 0) return;
    const int parts = useful_threads(work, count, threads);
    for_each_head(call, documents, kernel.differentiate, kernel.scratch_bytes(inputs, longest),
                  parts);
}

}  // namespace clara
