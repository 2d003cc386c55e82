"""Families whose models are in diffusers format: loading, shared parts, export. Needs ``fvd-core[diffusers]``.

class LtxComponents(DiffusersComponents): …     # classes and sizes of the VAE and the text encoder
class LtxAdapter(fvd.TextToVideoAdapter): …     # predict
class LtxFamily(DiffusersFamily): …             # names the two, the pipeline and the transformer
"""

from fvd.diffusers_format.components import DiffusersComponents as DiffusersComponents
from fvd.diffusers_format.family import DiffusersFamily as DiffusersFamily
from fvd.diffusers_format.features import TransformerFeatures as TransformerFeatures
from fvd.diffusers_format.tiny import tiny_t5 as tiny_t5
from fvd.diffusers_format.tiny import write_tiny_pipeline as write_tiny_pipeline
