"""`fvd plugins list`, `show`, `matrix`: for people and for tools."""

from __future__ import annotations

import json
from functools import partial

import pytest

import fvd
from fvd.cli.main import main
from fvd.plugins import registry
from fvd.testing import fake_distribution, installed_in

MODEL = """
    import fvd

    @fvd.hookimpl
    def fvd_families():
        return [fvd.FamilySpec(name="{name}", target="m.f:F", config="m.f:C", summary="a model", samplers={{"ode"}},
                               provides={{"prepare_batch", "predict", "add_noise"}})]
"""
ALGORITHM = """
    import fvd

    @fvd.hookimpl
    def fvd_methods():
        student = fvd.RoleNeeds(trainable=True, needs={"predict"})
        teacher = fvd.RoleNeeds(trainable=False, needs={"predict_x0"})
        return [
            fvd.MethodSpec(name="easy", target="m.e:E", config="m.e:C", roles={"student": student}, summary="an algorithm"),
            fvd.MethodSpec(name="hard", target="m.h:H", config="m.h:C", roles={"student": student, "teacher": teacher}),
        ]
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Core and what the test installs; fvd's own plugins are as good as not installed."""
    for variable in ("FVD_PLUGINS", "FVD_DISABLE_PLUGINS"):
        monkeypatch.delenv(variable, raising=False)
    find = registry.find_candidates
    monkeypatch.setattr(registry, "find_candidates", lambda: [c for c in find() if c.distribution not in FIRST_PARTY])
    with installed_in(tmp_path):
        yield partial(fake_distribution, tmp_path)


FIRST_PARTY = {"fvd-wan", "fvd-dmd2", "fvd-finetune"}
CORE_PROVIDES = "sampler:ode, sampler:sde, validator:video, dataset_kind:parquet, tracker:wandb, tracker:tensorboard"


CONFIG = '''
    from typing import Literal

    import fvd

    class C(fvd.PipelineConfig):
        solver: Literal["fast", "exact"] = "fast"
        """How steps are made."""
'''


def install_some(install) -> None:
    modules = {"t_ltx": MODEL.format(name="ltx"), "m.f": CONFIG}
    install("acme-ltx", "0.3.1", entry_points={"ltx": "t_ltx"}, modules=modules)
    install("acme-algo", entry_points={"algo": "t_algo"}, modules={"t_algo": ALGORITHM})
    install("x-broken", "0.2", entry_points={"hunyuan": "t_hun"}, modules={"t_hun": "import flash_attn_nowhere"})
    install("x-old", "0.9.0", entry_points={"old": "t_old"}, modules={"t_old": ""}, requires=["fvd-core>=99"])


def output(capsys, *argv: str) -> str:
    assert main(["plugins", *argv]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def test_list_for_people(install, capsys):
    install_some(install)
    assert output(capsys, "list").splitlines() == [
        f"fvd-core {fvd.__version__}  ·  3 of 5 plugins usable",
        "  PLUGIN   DISTRIBUTION  VERSION  STATE         PROVIDES",
        "  algo     acme-algo     1.0      ok            method:easy, method:hard",
        "  ltx      acme-ltx      0.3.1    ok            family:ltx",
        f"  core     fvd-core      {fvd.__version__}    ok            {CORE_PROVIDES}",
        "  hunyuan  x-broken      0.2      broken        "
        "P03 import failed: missing dependency 'flash_attn_nowhere' (t_hun, line 1)",
        "      cure: python -m pip install x-broken   (brings the dependencies that it declares)",
        f"  old      x-old         0.9.0    incompatible  P02 needs fvd-core>=99, have {fvd.__version__}",
        "      cure: python -m pip install --upgrade x-old fvd-core",
    ]


def test_list_for_tools(install, capsys):
    install_some(install)
    document = json.loads(output(capsys, "list", "--json"))
    assert document["core"] == {"version": fvd.__version__}
    assert set(document) == {"core", "plugins"}
    plugins = {plugin["name"]: plugin for plugin in document["plugins"]}
    assert list(plugins) == ["algo", "ltx", "core", "hunyuan", "old"]
    assert plugins["ltx"] == {
        "name": "ltx",
        "distribution": "acme-ltx",
        "version": "0.3.1",
        "state": "ok",
        "code": None,
        "reason": None,
        "provides": ["family:ltx"],
    }
    assert plugins["old"] == {
        "name": "old",
        "distribution": "x-old",
        "version": "0.9.0",
        "state": "incompatible",
        "code": "P02",
        "reason": f"needs fvd-core>=99, have {fvd.__version__}",
        "provides": [],
    }


def test_list_of_one_kind(install, capsys):
    install_some(install)
    document = json.loads(output(capsys, "list", "--json", "--kind", "sampler"))
    assert [(plugin["name"], plugin["provides"]) for plugin in document["plugins"]] == [
        ("core", ["sampler:ode", "sampler:sde"])
    ]
    lines = output(capsys, "list", "--kind", "family").splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["ltx"]


def test_list_with_core_alone(install, capsys):
    assert len(output(capsys, "list").splitlines()) == 3


def test_list_remarks(install, capsys):
    install("acme-wan", entry_points={"a": "t_a"}, modules={"t_a": MODEL.format(name="wan")})
    install(
        "bravo-wan",
        entry_points={"b": "t_b"},
        modules={"t_b": "import jax" + MODEL.format(name="wan").replace("\n    ", "\n"), "jax": ""},
    )
    assert output(capsys, "list").splitlines()[-2:] == [
        "  ! family 'wan' is provided by acme-wan and bravo-wan: write 'acme-wan:wan' or 'bravo-wan:wan' (P07)",
        "  ! b (bravo-wan 1.0) loads jax on import: every command pays for it (W01)",
    ]


def test_show_a_family(install, capsys):
    install_some(install)
    *described, keys = output(capsys, "show", "ACME_LTX").partition("    pipeline_config:\n")
    assert described[0].splitlines() == [
        "ltx (acme-ltx 0.3.1)  ok   entry point t_ltx",
        "  family ltx: a model",
        "    target        m.f:F",
        "    config        m.f:C",
        "    provides      add_noise predict prepare_batch",
        "    samplers      ode",
        "    attn_kinds    dense",
        "    latent_space  its own",
        "    validator     video",
        "    method        easy: ✓",
        "    method        hard: predict_x0 (teacher)",
    ]
    lines = keys.splitlines()
    solver = lines.index("      solver: 'fast' | 'exact' = 'fast'")
    assert lines[solver + 1].strip() == "How steps are made."
    assert any(line.startswith("      flow_shift") for line in lines)  # every family's


def test_show_a_method(install, capsys):
    install_some(install)
    assert output(capsys, "show", "algo").splitlines()[1:9] == [
        "  method easy: an algorithm",
        "    target        m.e:E",
        "    config        m.e:C",
        "    needs         prepare_batch",
        "    role          student, trained, needs predict",
        "    family        ltx: ✓",
        "    method_config: method 'easy' of plugin algo (acme-algo 1.0) cannot be loaded: target m.e:C: there is no module "
        "'m.e' [P09]",
        "  method hard: (no summary)",
    ]
    (plugin,) = json.loads(output(capsys, "show", "algo", "--json"))["plugins"]
    hard = plugin["components"][1]
    assert hard["roles"]["teacher"] == {"trainable": False, "needs": ["predict_x0"]}
    assert hard["families"] == {"ltx": "predict_x0 (teacher)"}


def test_show_a_broken_plugin(install, capsys):
    install_some(install)
    assert output(capsys, "show", "hunyuan").splitlines() == [
        "hunyuan (x-broken 0.2)  broken   entry point t_hun",
        "  P03 import failed: missing dependency 'flash_attn_nowhere' (t_hun, line 1)",
        "  cure: python -m pip install x-broken   (brings the dependencies that it declares)",
    ]


def test_show_what_is_not_there(install, capsys):
    install_some(install)
    assert main(["plugins", "show", "fvd_wan"]) == 1
    assert capsys.readouterr().err == "fvd: fvd-wan is not installed\npython -m pip install fvd-wan\n"
    assert main(["plugins", "show", "acme-ltxx"]) == 1
    assert "did you mean 'acme-ltx'" in capsys.readouterr().err


def test_matrix(install, capsys):
    install_some(install)
    assert output(capsys, "matrix").splitlines() == ["  FAMILY  easy  hard", "  ltx     ✓     predict_x0 (teacher)"]
    install("other-ltx", entry_points={"o": "t_o"}, modules={"t_o": MODEL.format(name="ltx")})
    assert [line.split()[0] for line in output(capsys, "matrix").splitlines()] == ["FAMILY", "acme-ltx:ltx", "other-ltx:ltx"]


def test_matrix_with_core_alone(install, capsys):
    assert "families: 0, methods: 0" in output(capsys, "matrix")
