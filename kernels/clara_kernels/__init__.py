"""Operators for retrieval over compressed memory, usable without the rest of CLaRa.

The package needs only torch. `build_info` says what was compiled. An operator that has no kernel
for a device runs its PyTorch reference there.
"""

from .build import build_info
from .corpus import Corpus, ShardedCorpus, distributed_topk, streamed_topk
from .cosine_scores import cosine_scores
from .cosine_topk import cosine_rerank, cosine_topk, merge_topk
from .memory_alignment_loss import memory_alignment_loss
from .memory_attention import memory_attention
from .quantization import dequantize_memory, quantize_memory
from .rank_and_select import rank_and_select
from .select_topk import select_topk
from .sparsemax import sparsemax
from .two_stage import Faiss, FirstStage, MeanPooled, RandomProjection, TwoStageSearch
from .version import __version__ as __version__

__all__ = [
    "Corpus",
    "Faiss",
    "FirstStage",
    "MeanPooled",
    "RandomProjection",
    "ShardedCorpus",
    "TwoStageSearch",
    "build_info",
    "cosine_rerank",
    "cosine_scores",
    "cosine_topk",
    "dequantize_memory",
    "distributed_topk",
    "memory_alignment_loss",
    "memory_attention",
    "merge_topk",
    "quantize_memory",
    "rank_and_select",
    "select_topk",
    "sparsemax",
    "streamed_topk",
]
