from .corpus import Corpus
from .distributed import distributed_topk
from .faiss_stage import Faiss
from .first_stage import FirstStage, MeanPooled
from .merge import merge_topk
from .op import cosine_rerank, cosine_topk
from .random_projection import RandomProjection
from .sharding import ShardedCorpus
from .streaming import streamed_topk
from .two_stage import TwoStageSearch

__all__ = [
    "Corpus",
    "Faiss",
    "FirstStage",
    "MeanPooled",
    "RandomProjection",
    "ShardedCorpus",
    "TwoStageSearch",
    "cosine_rerank",
    "cosine_topk",
    "distributed_topk",
    "merge_topk",
    "streamed_topk",
]
