from .decoder import Decoder as Decoder
from .weights import DecoderCache as DecoderCache
from .weights import DecoderWeights as DecoderWeights
from .weights import LayerWeights as LayerWeights
from .weights import LinearWeights as LinearWeights
