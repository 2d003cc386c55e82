import fvd


@fvd.hookimpl
def fvd_samplers() -> list[fvd.SamplerSpec]:
    return [
        fvd.SamplerSpec(
            name="heun",
            target="fvd_heun.heun:sample_heun",
            summary="second order, two calls a step",
            scheduler="ode",
            takes_timesteps=True,
        )
    ]
