import fvd
from fvd_torn.kernels import BLOCK_SIZE


@fvd.hookimpl
def fvd_samplers() -> list[fvd.SamplerSpec]:
    return [fvd.SamplerSpec(name="torn", target="fvd_torn.loop:sample", summary=f"in blocks of {BLOCK_SIZE}")]
