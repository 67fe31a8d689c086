"""Without a GPU, Triton kernels run in the interpreter: to be said before anything imports triton."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
