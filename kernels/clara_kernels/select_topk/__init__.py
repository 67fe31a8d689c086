from .op import select_topk

__all__ = ["select_topk"]
