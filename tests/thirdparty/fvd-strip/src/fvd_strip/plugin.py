import fvd


@fvd.hookimpl
def fvd_validators() -> list[fvd.ValidatorSpec]:
    return [fvd.ValidatorSpec(name="strip", target="fvd_strip.strip:StripValidator", summary="all prompts in one video")]
