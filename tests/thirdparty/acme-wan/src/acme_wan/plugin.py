import fvd


@fvd.hookimpl
def fvd_families() -> list[fvd.FamilySpec]:
    return [
        fvd.FamilySpec(
            name="wan",
            target="acme_wan.family:AcmeWanFamily",
            config="acme_wan.config:AcmeWanConfig",
            summary="Wan 2.1 with an English negative prompt, sampled as a strip",
            provides=fvd.TEXT_TO_VIDEO | fvd.FEATURE_PRIMITIVES,
            samplers={"ode", "sde"},
            latent_space="wan2.1",
            validator="strip",
            tiny="fvd_wan.tiny:make_tiny_wan",
            example=fvd.Example(path="Wan-AI/Wan2.1-T2V-1.3B-Diffusers"),
        )
    ]
