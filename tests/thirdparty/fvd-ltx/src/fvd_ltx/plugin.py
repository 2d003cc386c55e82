"""What fvd knows of this plugin before anything is loaded."""

import fvd


@fvd.hookimpl
def fvd_families() -> list[fvd.FamilySpec]:
    return [
        fvd.FamilySpec(
            name="ltx",
            target="fvd_ltx.family:LtxFamily",
            summary="LTX-Video text-to-video",
            provides=fvd.TEXT_TO_VIDEO,
            samplers={"ode", "sde"},
            tiny="fvd_ltx.tiny:write_tiny",
            example=fvd.Example(path="Lightricks/LTX-Video", pipeline_config={"flow_shift": 3.0}),
        )
    ]
