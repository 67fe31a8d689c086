from .op import cosine_scores

__all__ = ["cosine_scores"]
