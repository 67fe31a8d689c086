"""What is measured of each operator of clara_kernels: cases, what they compare with, promises."""

# Suites of `python -m bench.operators`: seconds that the cases of a module get on a GPU.
LIMITS = {
    "operators": {
        "cosine_scores": 30,
        "select_topk": 25,
        "sparsemax": 30,
        "memory_alignment_loss": 20,
        "memory_attention": 90,
        "rank_and_select": 20,
        "quantization": 25,
    },
    "scoring": {
        "cosine_topk_few": 110,
        "cosine_topk_many": 110,
    },
}

# Those of `pytest bench/`, at a compression rate.
AT_RATE = (
    "memory_attention",
    "memory_alignment_loss",
    "cosine_scores",
    "select_topk",
    "rank_and_select",
    "quantization",
    "cosine_topk",
)
