from .op import rank_and_select

__all__ = ["rank_and_select"]
