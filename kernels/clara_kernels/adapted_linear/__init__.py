"""Linear layers with a low-rank adapter in bfloat16, in one call without gradients."""

from .functions import adapted_linear as adapted_linear
from .functions import multiplies_here as multiplies_here
