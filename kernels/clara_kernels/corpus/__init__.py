from .codes import RowCodes, center_of, encode_rows
from .corpus import Corpus
from .distributed import distributed_topk
from .screening import CodedCorpus
from .sharding import ShardedCorpus
from .streaming import streamed_topk

__all__ = [
    "CodedCorpus",
    "Corpus",
    "RowCodes",
    "ShardedCorpus",
    "center_of",
    "distributed_topk",
    "encode_rows",
    "streamed_topk",
]
