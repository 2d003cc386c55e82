"""What a family's network returns is looked at before it reaches a loss or a sampler."""

from __future__ import annotations

import pytest
import torch
from small_video import SmallVideoAdapter, small_raw_batch, small_roles

import fvd
from fvd.errors import PluginError

PRIMITIVES = ("predict", "predict_x0", "predict_noise")
SHAPE = (2, 3, 2, 4, 4)


class Returning(SmallVideoAdapter):
    """Its three predictions are ``output(x_t)``."""

    def __init__(self, output) -> None:
        super().__init__()
        self.output = output

    def predict(self, handle, x_t, t, cond, *, attn_kind="dense"):
        return self.output(x_t)

    predict_x0 = predict_noise = predict


def views(output) -> list[object]:
    """The two ways in which methods and samplers reach a network."""
    adapter = Returning(output)
    handle = small_roles({"student": True})["student"]
    cond = adapter.prepare_batch(small_raw_batch(2), latents_source="data").cond
    guided = fvd.GuidedModel(adapter, handle, cond, cond, 3.0)
    bound = adapter.bind(handle)
    return [
        lambda primitive, x_t, t: getattr(bound, primitive)(x_t, t, cond),
        lambda primitive, x_t, t: getattr(guided, primitive)(x_t, t),
    ]


@pytest.mark.parametrize(
    ("output", "got"),
    [
        (lambda x: x[:, :1], r"\[2, 1, 2, 4, 4\] torch.float32"),  # would broadcast
        (lambda x: x[:1], r"\[1, 3, 2, 4, 4\] torch.float32"),
        (lambda x: x.movedim(1, 2), r"\[2, 2, 3, 4, 4\] torch.float32"),
        (lambda x: x.mean(), r"\[\] torch.float32"),
        (lambda x: x.to(torch.bfloat16), r"\[2, 3, 2, 4, 4\] torch.bfloat16"),
        (lambda x: x.double(), r"\[2, 3, 2, 4, 4\] torch.float64"),
        (lambda x: (x,), "tuple"),
    ],
    ids=["one channel", "one sample", "frames first", "scalar", "bfloat16", "float64", "tuple"],
)
@pytest.mark.parametrize("primitive", PRIMITIVES)
def test_another_shape_or_dtype_is_an_error_of_the_family(primitive, output, got):
    for call in views(output):
        with pytest.raises(PluginError, match=rf"Returning\.{primitive} must return float32 of shape .*, got {got}") as caught:
            call(primitive, torch.zeros(SHAPE), torch.full((2,), 500.0))
        assert "the family small_video" in caught.value.cure


@pytest.mark.parametrize("primitive", PRIMITIVES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_good_prediction_passes_unchanged(primitive, dtype):
    x_t = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).to(dtype)
    for call in views(lambda x: 2 * x.float()):
        torch.testing.assert_close(call(primitive, x_t, torch.full((2,), 500.0)), 2 * x_t.float())


@pytest.mark.parametrize("primitive", PRIMITIVES)
def test_attention_that_the_family_lacks_is_an_error_of_the_method(primitive):
    adapter = Returning(lambda x: x.float())
    handle = small_roles({"student": True})["student"]
    with pytest.raises(PluginError, match=r"small_video has no attention 'sparse'.*\n.*dense.*supported_attn_kind"):
        getattr(adapter.bind(handle), primitive)(torch.zeros(SHAPE), torch.full((2,), 500.0), None, attn_kind="sparse")
