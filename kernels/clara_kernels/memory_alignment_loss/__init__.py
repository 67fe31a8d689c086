from .op import memory_alignment_loss

__all__ = ["memory_alignment_loss"]
