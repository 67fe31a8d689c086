from .op import cosine_topk

__all__ = ["cosine_topk"]
