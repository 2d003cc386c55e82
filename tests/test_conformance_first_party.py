"""fvd's own plugins pass the kit that everybody's plugins are checked with, as it stands."""

from __future__ import annotations

from fvd.plugins.registry import KINDS
from fvd.testing import (
    FamilyConformance,
    MethodConformance,
    SamplerConformance,
    TrackerConformance,
    ValidatorConformance,
)
from fvd.testing.conformance import load_for_check

FIRST_PARTY = {"fvd-core", "fvd-wan", "fvd-dmd2", "fvd-finetune"}


class TestWan(FamilyConformance):
    family = "fvd-wan:wan"


class TestToy(FamilyConformance):
    family = "fvd-core:toy"


class TestToyNoise(FamilyConformance):
    family = "fvd-core:toy_noise"


class TestToyMethod(MethodConformance):
    method = "fvd-core:toy"


class TestFinetune(MethodConformance):
    method = "fvd-finetune:finetune"


class TestDmd2(MethodConformance):
    method = "fvd-dmd2:dmd2"


class TestOde(SamplerConformance):
    sampler = "fvd-core:ode"


class TestSde(SamplerConformance):
    sampler = "fvd-core:sde"


class TestDdim(SamplerConformance):
    sampler = "fvd-core:ddim"


class TestVideo(ValidatorConformance):
    validator = "fvd-core:video"


class TestTensorBoard(TrackerConformance):
    tracker = "fvd-core:tensorboard"


class TestWandb(TrackerConformance):
    tracker = "fvd-core:wandb"


CLASSES = [TestWan, TestToy, TestToyNoise, TestToyMethod, TestFinetune, TestDmd2, TestOde, TestSde, TestDdim, TestVideo]
CLASSES += [TestTensorBoard, TestWandb]


def test_every_component_has_its_class():
    plugins = load_for_check()
    checked = {f"{conformance.kind} {conformance.component()}" for conformance in CLASSES}
    provided = {
        f"{kind} {plugins.owner(spec).distribution}:{spec.name}"
        for kind in KINDS
        for spec in plugins.specs(kind)
        if plugins.owner(spec).distribution in FIRST_PARTY and kind not in ("dataset_kind", "command")
    }
    assert checked == provided


def test_nothing_is_expected_to_fail_but_learning_from_random_weights_with_a_guided_teacher():
    plugins = load_for_check()
    own = [spec for kind in KINDS for spec in plugins.specs(kind) if plugins.owner(spec).distribution in FIRST_PARTY]
    assert {spec.name: set(spec.expected_failures) for spec in own if spec.expected_failures} == {"dmd2": {"B211"}}
