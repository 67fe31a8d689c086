"""Linear layers with a low-rank adapter in bfloat16, each in one call."""

from .functions import adapted_linear as adapted_linear
from .functions import gradient_of_down as gradient_of_down
from .functions import gradient_of_up as gradient_of_up
from .functions import gradients as gradients
from .functions import multiplies_here as multiplies_here
from .functions import trains_here as trains_here
from .functions import with_change as with_change
