from .corpus import Corpus
from .distributed import distributed_topk
from .sharding import ShardedCorpus
from .streaming import streamed_topk

__all__ = ["Corpus", "ShardedCorpus", "distributed_topk", "streamed_topk"]
