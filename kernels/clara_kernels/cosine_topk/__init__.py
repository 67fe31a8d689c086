from .merge import merge_topk
from .op import cosine_rerank, cosine_topk

__all__ = ["cosine_rerank", "cosine_topk", "merge_topk"]
