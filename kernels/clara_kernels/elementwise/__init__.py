"""Parts of a transformer layer that read and write each value once, with gradients."""

from .functions import computes_here as computes_here
from .functions import gated_activation as gated_activation
from .functions import rms_norm as rms_norm
from .functions import rms_norm_of_sum as rms_norm_of_sum
from .functions import rotate as rotate
