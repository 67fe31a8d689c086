#pragma once

#include <cstdint>
#include <vector>

#include "core/simd/attention.hpp"

namespace clara {

/// Whether `kernels()` has a kernel for packed_attention.
bool attends_bfloat16();

/// Writes the results of all documents, where attends_bfloat16().
void packed_attention(const PackedAttention& call, const std::vector<AttendedDocument>& documents,
                      int threads);

/// Writes the gradients of all documents, where attends_bfloat16(). Each head of a document's keys
/// is the work of one thread.
void packed_attention_gradient(const AttentionGradient& call,
                               std::vector<AttendedDocument> documents, int threads);

}  // namespace clara
