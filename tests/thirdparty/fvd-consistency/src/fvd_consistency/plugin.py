import fvd


@fvd.hookimpl
def fvd_methods() -> list[fvd.MethodSpec]:
    return [
        fvd.MethodSpec(
            name="consistency",
            target="fvd_consistency.method:Consistency",
            config="fvd_consistency.config:ConsistencyConfig",
            summary="consistency distillation from a teacher's steps",
            roles={
                "student": fvd.RoleNeeds(trainable=True, needs={"predict_x0"}),
                "teacher": fvd.RoleNeeds(trainable=False, needs={"predict_x0", "predict_noise"}),
            },
            needs={"prepare_batch", "add_noise", "shift_and_clamp_timestep", "num_train_timesteps"},
            example=fvd.Example(method_config={"gap": 50.0, "ladder": [1000.0, 500.0]}),
        )
    ]
