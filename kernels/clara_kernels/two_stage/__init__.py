from .faiss_stage import Faiss
from .first_stage import FirstStage, MeanPooled
from .random_projection import RandomProjection
from .search import TwoStageSearch

__all__ = ["Faiss", "FirstStage", "MeanPooled", "RandomProjection", "TwoStageSearch"]
