"""A whole training method in one file:  fvd run examples/toy.yaml --plugin examples/my_method.py"""

from torch.nn import functional

import fvd


@fvd.hookimpl
def fvd_methods():
    spec = fvd.MethodSpec(
        name="my_method",
        target="my_method:MyMethod",
        config="my_method:MyConfig",
        summary="regression with the Huber loss",
        roles={"student": fvd.RoleNeeds(trainable=True, needs={"predict"})},
        needs={"prepare_batch", "add_noise", "training_target", "num_train_timesteps"},
    )
    return [spec]


class MyConfig(fvd.MethodConfig):
    huber_delta: float = 1.0
    """Where the loss turns from quadratic to linear."""


class MyMethod(fvd.Method):
    role_names = ("student",)

    def single_train_step(self, batch, iteration, *, rng):
        prepared = self.adapter.prepare_batch(batch, latents_source="data")
        x0, noise, t = prepared.latents, rng.randn_like(prepared.latents), rng.rand() * self.adapter.num_train_timesteps
        student = self.adapter.bind(self.roles["student"])
        prediction = student.predict(self.adapter.add_noise(x0, noise, t), t, prepared.cond)
        target = self.adapter.training_target(x0, noise, t)
        delta = self.run.method_config.huber_delta
        yield fvd.Loss("loss", functional.huber_loss(prediction, target, delta=delta), role="student")
