"""B107 to B110, B116, B117: the networks behind the primitives."""

from __future__ import annotations

import torch
from torch import Tensor

from fvd.data.spec import RawBatch
from fvd.recompute import recompute_activations
from fvd.roles import RoleHandle
from fvd.testing.conformance.asserts import (
    global_random_state_untouched,
    require,
    require_close,
    require_different,
    require_equal,
    require_tensor,
    same_state,
    state_of,
)
from fvd.testing.conformance.examination import Subject
from fvd.testing.conformance.family_build import CAPTIONS, FamilyBench
from fvd.testing.conformance.outcomes import CheckSkipped


def gradients(subject: Subject) -> None:
    """B107: they reach the weights of a trained role, never those of a frozen one, and x_t through both: methods
    backpropagate through a frozen teacher into what a student made."""
    bench = subject.family
    bench.require_primitives("predict")
    for handle in (bench.student, bench.teacher):
        _forget_gradients(bench)
        x_t = bench.noise().requires_grad_()
        prediction = bench.adapter.bind(handle).predict(x_t, bench.t(0.5), bench.batch.cond)
        require(prediction.requires_grad, f"predict of {_said(handle)} must keep the graph; it is detached, or made without")
        bench.adapter.backward(prediction.square().mean(), None)
        require(x_t.grad is not None and bool(x_t.grad.any()), f"no gradient reaches x_t through {_said(handle)}")
        for other in (bench.student, bench.teacher):
            reached = [p for module in other.modules.values() for p in module.parameters() if p.grad is not None]
            if other is handle and handle.trainable:
                moved = any(bool(p.grad.any()) for p in reached if p.grad is not None)
                require(moved, f"no gradient reaches a parameter of {_said(handle)}")
                finite = all(bool(torch.isfinite(p.grad).all()) for p in reached if p.grad is not None)
                require(finite, f"the gradient of {_said(handle)} is not finite")
            else:
                require(not reached, f"predict of {_said(handle)} leaves gradients in {_said(other)}")
    _forget_gradients(bench)


def _said(handle: RoleHandle) -> str:
    return "a trained role" if handle.trainable else "a frozen role"


def _forget_gradients(bench: FamilyBench) -> None:
    for handle in (bench.student, bench.teacher):
        for module in handle.modules.values():
            module.zero_grad(set_to_none=True)


def deterministic(subject: Subject) -> None:
    """B108: also across a call with other inputs, and with another global seed."""
    bench = subject.family
    bench.require_primitives("predict")
    x_t, t = bench.noise(), bench.t(0.3, 0.6)
    kept_x_t, kept_t = x_t.clone(), t.clone()
    modules = [module for handle in (bench.student, bench.teacher) for module in handle.modules.values()]
    weights = state_of(modules)
    with global_random_state_untouched("predict"):
        first = bench.predict(bench.student, t, x_t=x_t)
    require(torch.equal(x_t, kept_x_t) and torch.equal(t, kept_t), "predict must not change its inputs")
    bench.predict(bench.student, bench.t(0.9), x_t=2 * x_t)
    torch.manual_seed(1234)
    require_equal(
        bench.predict(bench.student, t, x_t=x_t), first, "predict called twice with the same inputs must give the same"
    )
    with global_random_state_untouched("prepare_batch"):
        again = bench.adapter.prepare_batch(bench.raw_batch, latents_source="data")
    require_equal(again.latents, bench.batch.latents, "prepare_batch called twice must give the same latents")
    require(same_state(weights, state_of(modules)), "predict must not change weights or buffers")


def conditioning_matters(subject: Subject) -> None:
    """B109: prompts differ from each other and from the unconditional branch; zeroed conditioning is something else still."""
    bench = subject.family
    bench.require_primitives("predict", "encode_prompts", "ensure_negative_conditioning", "negative_conditioning")
    prompts = [*CAPTIONS, "a cat sleeps", "rain on a window"]
    t, x_t = bench.t(0.7)[:1], bench.noise()[:1]

    def predict(cond: object) -> Tensor:
        return bench.predict(bench.student, t, cond, x_t)

    conditional = [predict(bench.adapter.encode_prompts([prompt])) for prompt in prompts]
    hint = "does the conditioning reach the network? (In a tiny model, a last layer of zeros hides it.)"
    differ = [bool((one != conditional[0]).any()) for one in conditional[1:]]
    require(any(differ), f"predict is the same for {len(prompts)} prompts: {hint}")
    require_different(
        conditional[0], predict(bench.adapter.negative_conditioning(1)), f"cond and uncond predict the same: {hint}"
    )
    batched = bench.predict(bench.student, bench.t(0.7), bench.adapter.encode_prompts(prompts[:2]), torch.cat([x_t, x_t]))
    together = torch.cat(conditional[:2])
    require_close(batched, together, "encode_prompts of two prompts must be the two of them, in order")
    if bench.batch.uncond is not None:
        uncond = bench.predict(bench.student, bench.t(0.7), bench.batch.uncond)
        negative = bench.predict(bench.student, bench.t(0.7), bench.adapter.negative_conditioning(2))
        require_close(uncond, negative, "the uncond of prepare_batch must be negative_conditioning")
    if "zero_conditioning" in bench.spec.provides:
        cond = bench.adapter.encode_prompts(prompts[:1])
        zeroed = predict(bench.adapter.zero_conditioning(cond))
        require_tensor(zeroed, x_t.shape, "predict with zero_conditioning")
        require_different(zeroed, conditional[0], "zero_conditioning predicts the same as the prompt")
        require_equal(predict(cond), conditional[0], "zero_conditioning must leave the conditioning that it is given alone")


def dropped_conditioning(subject: Subject) -> None:
    """B110: samples marked as dropped, and only they, predict as the empty prompt does."""
    bench = subject.family
    bench.require_primitives("predict", "encode_prompts")
    if not bench.drops_conditioning:
        raise CheckSkipped("the family forbids dropping the conditioning")
    raw = bench.raw_batch
    half = RawBatch(raw.tensors, torch.tensor([True, False]), raw.info)
    t = bench.t(0.6)
    kept = bench.predict(bench.student, t)
    got = bench.predict(bench.student, t, bench.adapter.prepare_batch(half, latents_source="data").cond)
    empty = bench.predict(bench.student, t, bench.adapter.encode_prompts(["", ""]))
    require_close(got[1], kept[1], "a sample that is not dropped must keep its condition")
    require_different(got[0], kept[0], "a dropped sample predicts as if it were kept")
    require_close(got[0], empty[0], "a dropped sample must predict as the empty prompt does")


def attention(subject: Subject) -> None:
    """B116."""
    bench = subject.family
    bench.require_primitives("predict")
    for kind in sorted(bench.adapter.attn_kinds):
        with torch.no_grad():
            output = bench.adapter.predict(bench.student, bench.noise(), bench.t(0.5), bench.batch.cond, attn_kind=kind)
        require_tensor(output, bench.x0.shape, f"predict with attn_kind={kind!r}")


def recomputation(subject: Subject) -> None:
    """B117: with activations of `shard_units` recomputed in the backward pass, gradients are the same."""
    bench = subject.family
    bench.require_primitives("predict")
    plain = bench.load_role("student", bench.path, trainable=True)
    if not bench.family.shard_units(plain):
        raise CheckSkipped("shard_units() names no blocks")
    units = {id(module) for part in plain.modules.values() for module in part.modules()}
    foreign = [unit for unit in bench.family.shard_units(plain) if id(unit) not in units]
    require(not foreign, "shard_units must return modules of the role that it is given")
    recomputed = bench.load_role("student", bench.path, trainable=True)
    recompute_activations(bench.family, recomputed)
    expected, found = _gradients_of(bench, plain), _gradients_of(bench, recomputed)
    require(expected.keys() == found.keys(), "recomputing activations changes which parameters get gradients")
    for name, gradient in expected.items():
        require_close(found[name], gradient, f"recomputing activations changes the gradient of {name}")


def _gradients_of(bench: FamilyBench, handle: RoleHandle) -> dict[str, Tensor]:
    prediction = bench.adapter.predict(handle, bench.noise(), bench.t(0.5), bench.batch.cond)
    prediction.square().mean().backward()
    return {
        f"{part}.{name}": parameter.grad
        for part, module in handle.modules.items()
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }
