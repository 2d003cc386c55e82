"""What fvd knows of this plugin before anything is loaded."""

import fvd


@fvd.hookimpl
def fvd_families() -> list[fvd.FamilySpec]:
    return [
        fvd.FamilySpec(
            name="cogvideox",
            target="fvd_cogvideox.family:CogVideoXFamily",
            summary="CogVideoX text-to-video, 2B and 5B",
            provides=fvd.TEXT_TO_VIDEO,
            samplers={"ode", "sde"},
            tiny="fvd_cogvideox.tiny:write_tiny",
            example=fvd.Example(path="THUDM/CogVideoX-2b"),
        )
    ]
