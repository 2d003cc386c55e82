"""`fvd plugins list`, `show`, `matrix`: for people and for tools."""

from __future__ import annotations

import json
import sys
import textwrap
from functools import partial

import pytest

import fvd
from fvd.cli.main import main
from fvd.plugins import registry
from fvd.testing import fake_dist, installed_in, loaded_modules

MODEL = """
    import fvd

    @fvd.hookimpl
    def fvd_families():
        return [fvd.FamilySpec(name="{name}", target="m.f:F", config="m.f:C", summary="a model", samplers={{"ode"}},
                               provides={{"prepare_batch", "predict", "add_noise"}},
                               expected_failures={{"B107": "no text encoder yet"}})]
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
        yield partial(fake_dist, tmp_path)


FIRST_PARTY = {"fvd-wan", "fvd-dmd2", "fvd-finetune"}
CORE_PROVIDES = (
    "sampler:ode, sampler:sde, sampler:ddim, validator:video, dataset_kind:parquet, tracker:wandb, tracker:tensorboard"
)


CONFIG = '''
    from typing import Literal

    import fvd

    class C(fvd.PipelineConfig):
        solver: Literal["fast", "exact"] = "fast"
        """How steps are made."""
'''


NOT_DECLARED = (
    "Install what provides the module 'flash_attn_nowhere', and tell the authors of x-broken: "
    "they declare no dependency of that name."
)


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
        f"      cure: {NOT_DECLARED}",
        f"  old      x-old         0.9.0    incompatible  P02 needs fvd-core>=99, have {fvd.__version__}",
        "      cure: python -m pip install --upgrade x-old fvd-core",
        "  `fvd plugins explain P02 P03` says more",
    ]


def test_list_for_tools(install, capsys):
    install_some(install)
    document = json.loads(output(capsys, "list", "--json"))
    assert document["core"] == {"version": fvd.__version__}
    assert set(document) == {"core", "plugins", "remarks"}
    plugins = {plugin["name"]: plugin for plugin in document["plugins"]}
    assert list(plugins) == ["algo", "ltx", "core", "hunyuan", "old"]
    assert plugins["ltx"] == {
        "name": "ltx",
        "distribution": "acme-ltx",
        "version": "0.3.1",
        "state": "ok",
        "code": None,
        "reason": None,
        "cure": None,
        "provides": ["family:ltx"],
    }
    assert plugins["old"] == {
        "name": "old",
        "distribution": "x-old",
        "version": "0.9.0",
        "state": "incompatible",
        "code": "P02",
        "reason": f"needs fvd-core>=99, have {fvd.__version__}",
        "cure": "python -m pip install --upgrade x-old fvd-core",
        "provides": [],
    }


def test_list_of_one_kind(install, capsys):
    install_some(install)
    document = json.loads(output(capsys, "list", "--json", "--kind", "sampler"))
    assert [(plugin["name"], plugin["provides"]) for plugin in document["plugins"]] == [
        ("core", ["sampler:ode", "sampler:sde", "sampler:ddim"])
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
    lines = output(capsys, "list").splitlines()
    assert lines[3].split() == ["b", "bravo-wan", "1.0", "slow", "family:wan"]
    assert lines[4].startswith("      W01 loads jax on import")
    assert lines[-3:] == [
        "  ! P07 family 'wan' is provided by acme-wan and bravo-wan: nobody wins",
        "      cure: Write 'acme-wan:wan' or 'bravo-wan:wan', or disable one of them, as in `-p no:acme-wan`.",
        "  `fvd plugins explain P07 W01` says more",
    ]
    document = json.loads(output(capsys, "list", "--json"))
    assert [plugin["code"] for plugin in document["plugins"]] == [None, "W01", None]
    assert [(remark["code"], remark["plugin"]) for remark in document["remarks"]] == [("P07", "")]


def test_a_stale_installation_is_a_remark(install, capsys, tmp_path):
    source = tmp_path / "source of ltx"
    source.mkdir()
    (source / "pyproject.toml").write_text('[project.entry-points."fvd.plugins"]\nltx2 = "t_ltx2"\n')
    editable = {"url": source.as_uri(), "dir_info": {"editable": True}}
    install("acme-ltx", entry_points={"ltx": "t_ltx"}, modules={"t_ltx": MODEL.format(name="ltx")}, direct_url=editable)
    assert output(capsys, "list").splitlines()[-3:] == [
        "  ! W02 acme-ltx: its source declares `ltx2 = t_ltx2`, which is not installed; `ltx = t_ltx` is installed, and its "
        "source no longer declares it",
        f"      cure: python -m pip install --no-deps -e '{source}'",
        "  `fvd plugins explain W02` says more",
    ]
    assert f"  installed from editable {source}" in output(capsys, "show", "ltx").splitlines()


def test_show_a_family(install, capsys):
    install_some(install)
    *described, keys = output(capsys, "show", "ACME_LTX").partition("    pipeline_config:\n")
    assert described[0].splitlines() == [
        "ltx (acme-ltx 0.3.1)  ok   entry point t_ltx",
        "  installed from index",
        "  family ltx: a model",
        "    target          m.f:F",
        "    config          m.f:C",
        "    provides        add_noise predict prepare_batch",
        "    samplers        ode",
        "    attn_kinds      dense",
        "    latent_space    its own",
        "    validator       video",
        "    dataset_kind    parquet",
        "    exports to      diffusers",
        "    method          easy: ✓",
        "    method          hard: predict_x0 (teacher)",
        "    known failure   B107 no text encoder yet",
        "    example         fvd plugins example ltx > run.yaml",
    ]
    lines = keys.splitlines()
    solver = lines.index("      solver: fast | exact = fast")
    assert lines[solver + 1].strip() == "How steps are made."
    assert any(line.startswith("      flow_shift") for line in lines)  # every family's


def test_show_a_method(install, capsys):
    install_some(install)
    assert output(capsys, "show", "algo").splitlines()[2:11] == [
        "  method easy: an algorithm",
        "    target          m.e:E",
        "    config          m.e:C",
        "    needs           prepare_batch",
        "    role            student, trained, needs predict",
        "    family          ltx: ✓",
        "    example         fvd plugins example easy > run.yaml",
        "    method_config: method 'easy' of plugin algo (acme-algo 1.0) cannot be loaded: target m.e:C: there is no module "
        "'m.e' [P09]",
        "  method hard: (no summary)",
    ]
    (plugin,) = json.loads(output(capsys, "show", "algo", "--json"))["plugins"]
    hard = plugin["components"][1]
    assert hard["roles"]["teacher"] == {
        "trainable": False,
        "needs": ["predict_x0"],
        "optional": False,
        "made_by_method": False,
    }
    assert hard["families"] == {"ltx": "predict_x0 (teacher)"}
    assert (hard["keys"], "cannot be loaded" in hard["keys_problem"]) == ([], True)
    (plugin,) = json.loads(output(capsys, "show", "ltx", "--json"))["plugins"]
    (ltx,) = plugin["components"]
    assert plugin["source"]["kind"] == "index"
    assert ltx["expected_failures"] == {"B107": "no text encoder yet"}
    assert {
        "name": "solver",
        "type": "fast | exact",
        "required": False,
        "default": "fast",
        "description": "How steps are made.",
    } in (ltx["keys"])


def test_show_a_component(install, capsys):
    install_some(install)
    assert output(capsys, "show", "ode").splitlines()[2:] == [
        "  sampler ode: the scheduler's own step",
        "    target          fvd.samplers.ode:sample_ode",
        "    scheduler       ode",
        "    timesteps       a number of steps",
        "    made for        any model",
        "    family          ltx: ✓",
    ]
    lines = output(capsys, "show", "acme_algo:hard").splitlines()
    assert [line for line in lines if line.startswith("  method")] == ["  method hard: (no summary)"]
    assert "  family toy: " in output(capsys, "show", "toy")  # loaded because it is named
    install("other-ltx", entry_points={"o": "t_o"}, modules={"t_o": MODEL.format(name="easy")})
    shown = [plugin["name"] for plugin in json.loads(output(capsys, "show", "easy", "--json"))["plugins"]]
    assert shown == ["algo", "o"]  # a method and a family
    for word, owner in (("method:easy", "algo"), ("family:easy", "o"), ("family:other-ltx:easy", "o"), ("family:toy", "toy")):
        (plugin,) = json.loads(output(capsys, "show", word, "--json"))["plugins"]
        assert (plugin["name"], [one["name"] for one in plugin["components"]]) == (owner, [word.rpartition(":")[2]])


def test_show_a_broken_plugin(install, capsys):
    install_some(install)
    assert output(capsys, "show", "hunyuan").splitlines() == [
        "hunyuan (x-broken 0.2)  broken   entry point t_hun",
        "  installed from index",
        "  P03 import failed: missing dependency 'flash_attn_nowhere' (t_hun, line 1)",
        f"  cure: {NOT_DECLARED}",
    ]


def test_show_a_plugin_of_a_distribution_whose_metadata_is_gone(install, capsys, tmp_path):
    install("x-damaged", entry_points={"damaged": "t_damaged"}, modules={"t_damaged": ""})
    (tmp_path / "x_damaged-1.0.dist-info/METADATA").unlink()
    lines = output(capsys, "show", "damaged").splitlines()
    assert lines[:2] == ["damaged (unknown unknown)  broken   entry point t_damaged", "  installed from an unknown place"]
    (plugin,) = json.loads(output(capsys, "show", "damaged", "--json"))["plugins"]
    assert plugin["source"]["kind"] == "unknown"


def test_show_what_is_not_there(install, capsys):
    install_some(install)
    assert main(["plugins", "show", "fvd_wan"]) == 1
    assert capsys.readouterr().err == "fvd: fvd-wan is not installed\npython -m pip install fvd-wan\n"
    assert main(["plugins", "show", "acme-ltxx"]) == 1
    assert "did you mean 'acme-ltx'" in capsys.readouterr().err
    for word in ("family:easy", "method:ltx", "sampler:nosuch"):
        assert main(["plugins", "show", word]) == 1
    capsys.readouterr()
    assert main(["plugins", "show", "nosuch"]) == 1
    _, plugins, components = capsys.readouterr().err.splitlines()
    assert plugins == "Plugins: algo, ltx, core, hunyuan, old."
    assert components.startswith("Components: dataset_kind:parquet, family:ltx, method:easy, method:hard, sampler:ddim")


def test_matrix(install, capsys):
    install_some(install)
    assert output(capsys, "matrix").splitlines() == ["  FAMILY  easy  hard", "  ltx     ✓     predict_x0 (teacher)"]
    install("other-ltx", entry_points={"o": "t_o"}, modules={"t_o": MODEL.format(name="ltx")})
    assert [line.split()[0] for line in output(capsys, "matrix").splitlines()] == ["FAMILY", "acme-ltx:ltx", "other-ltx:ltx"]


def test_matrix_for_tools(install, capsys):
    install_some(install)
    assert json.loads(output(capsys, "matrix", "--json")) == {"ltx": {"easy": [], "hard": ["predict_x0"]}}


def test_two_plugins_of_one_distribution_with_one_component(install, capsys):
    modules = {name: MODEL.format(name="ltx") for name in ("t_a", "t_b")} | {"t_algo": ALGORITHM, "m.f": CONFIG}
    install("acme", entry_points={"a": "t_a", "b": "t_b", "algo": "t_algo"}, modules=modules)
    assert [line.split()[0] for line in output(capsys, "matrix").splitlines()] == ["FAMILY", "a:ltx", "b:ltx"]
    assert "    example         fvd plugins example b:ltx > run.yaml" in output(capsys, "show", "b").splitlines()
    (plugin,) = json.loads(output(capsys, "show", "b", "--json"))["plugins"]
    assert plugin["components"][0]["keys_problem"] is None


def test_matrix_with_core_alone(install, capsys):
    assert "families: 0, methods: 0" in output(capsys, "matrix")


# --- doctor ----------------------------------------------------------------------------------------------------------
def diagnose(capsys, *options: str) -> tuple[int, dict]:
    status = main([*options, "plugins", "doctor", "--json"])
    return status, json.loads(capsys.readouterr().out)


def test_doctor_loads_everything_and_blames_the_right_plugin(install, capsys):
    modules = {
        "t_ltx": MODEL.format(name="ltx"),
        "m.f": "import fvd\nprint('loading')\nclass FF: pass\nclass C(fvd.PipelineConfig): pass",
        "t_out": MODEL.format(name="out").replace("m.f", "m.out"),
        "m.out": "raise SystemExit(3)",
    }
    install("acme-ltx", entry_points={"ltx": "t_ltx"}, modules=modules, requires=["fvd-core>=0.1,<1"])
    install("acme-out", entry_points={"out": "t_out"}, requires=["fvd-core>=0.1"])
    install("x-old", "0.9.0", entry_points={"old": "t_old"}, modules={"t_old": ""}, requires=["fvd-core>=99"])
    install("x-off", entry_points={"off": "t_off"}, modules={"t_off": "1 / 0"})
    status, found = diagnose(capsys, "-p", "no:off")
    assert (status, found["ok"]) == (1, False)
    problems = {(problem["code"], problem["plugin"]): problem for problem in found["problems"]}
    assert set(problems) == {("P02", "old (x-old 0.9.0)"), ("P09", "ltx (acme-ltx 1.0)"), ("P09", "out (acme-out 1.0)")}
    assert "did you mean 'FF'?" in problems["P09", "ltx (acme-ltx 1.0)"]["message"]
    assert "SystemExit: 3 (m.out, line 1)" in problems["P09", "out (acme-out 1.0)"]["message"]
    assert all(problem["cure"] for problem in found["problems"])
    warnings = [(warning["plugin"], warning["message"]) for warning in found["warnings"] if warning["plugin"][-1:] == ")"]
    assert warnings == [
        ("out (acme-out 1.0)", "its requirement `fvd-core>=0.1` has no upper bound"),
        ("old (x-old 0.9.0)", "its requirement `fvd-core>=99` has no upper bound"),
    ]
    assert found["environment"]["libraries"]["torch"]
    assert {plugin["state"] for plugin in found["plugins"]} == {"ok", "incompatible", "disabled"}


def test_doctor_loads_what_makes_a_tiny_model(install, capsys):
    family = MODEL.format(name="ltx").replace("name=", "tiny='m.tiny:write', name=")
    config = "import fvd\nclass F: pass\nclass C(fvd.PipelineConfig): pass"
    install(
        "acme-ltx", entry_points={"ltx": "t_ltx"}, modules={"t_ltx": family, "m.f": config, "m.tiny": "def rite(folder): pass"}
    )
    status, found = diagnose(capsys)
    problem = found["problems"][-1]
    assert (status, problem["code"], problem["plugin"]) == (1, "P09", "ltx (acme-ltx 1.0)")
    assert "the tiny model of family 'ltx'" in problem["message"]
    assert "the module has no 'write' (did you mean 'rite'?)" in problem["message"]
    assert "[P09]" not in problem["message"]


def test_doctor_gives_every_finding_a_code(install, capsys, tmp_path):
    command = "import fvd\n\n@fvd.hookimpl\ndef fvd_commands():\n    return [fvd.CommandSpec(name='run', target='m.c:run')]"
    install("acme-run", entry_points={"run": "t_run"}, modules={"t_run": command, "m.c": "def run(parser): ..."})
    install("acme-run", "0.9")
    found = diagnose(capsys)[1]
    coded = {(warning["code"], warning["message"].partition(":")[0]) for warning in found["warnings"]}
    assert coded >= {
        ("W03", "acme-run is installed more than once"),
        ("W05", "its distribution does not require fvd-core"),
        ("W06", "command 'run' is not reachable"),
    }
    assert all(finding["code"] for finding in [*found["warnings"], *found["problems"]])


def test_doctor_blames_torch_once(install, capsys, monkeypatch, tmp_path):
    install("x-torch", modules={"torch": "raise OSError('libcudart.so: cannot open shared object file')"})
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    status, found = diagnose(capsys)
    assert status == 1
    (problem,) = found["problems"]
    assert (problem["code"], problem["message"]) == (
        "W04", "torch cannot be used: OSError: libcudart.so: cannot open shared object file"
    )  # fmt: skip


def test_doctor_for_people(install, capsys):
    install("acme-ltx", entry_points={"ltx": "t_ltx"}, modules={"t_ltx": MODEL.format(name="ltx")}, requires=["fvd-core<1"])
    install("x-off", entry_points={"off": "t_off"}, modules={"t_off": "1 / 0"})
    assert main(["plugins", "doctor", "-p", "no:off"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "  off is off: disabled by -p no:off (P10)" in lines
    blamed = [line for line in lines if line.startswith("  ✗ ")]
    assert [line.partition(": ")[0] for line in blamed] == ["  ✗ P09 ltx (acme-ltx 1.0)"] * 2  # its target and its config
    usable, pages, verdict = lines[-3:]
    assert usable == "2 of 3 plugins usable, 7 components loaded"
    assert pages == "  `fvd plugins explain P09` says more"
    assert verdict.startswith("2 problems")


def test_doctor_with_core_alone_is_content(install, capsys):
    status, found = diagnose(capsys)
    assert (status, found["problems"]) == (0, [])


@pytest.mark.parametrize("content", [bytes(range(256)), b"[console_scripts]\nbad\n"], ids=["bytes", "no ini file"])
def test_doctor_names_distributions_whose_entry_points_cannot_be_read(install, capsys, tmp_path, content):
    install("acme-bad", entry_points={"bad": "acme_bad"})
    install("acme-none")
    (tmp_path / "acme_bad-1.0.dist-info/entry_points.txt").write_bytes(content)
    status, found = diagnose(capsys)
    assert (status, [plugin["name"] for plugin in found["plugins"]]) == (0, ["core"])
    (warning,) = [warning for warning in found["warnings"] if "acme-" in warning["message"]]
    assert warning["message"].startswith("the entry points of acme-bad cannot be read (")
    assert warning["cure"] == "python -m pip install --force-reinstall --no-deps acme-bad"


def test_doctor_finds_a_stale_distribution_without_plugins(install, capsys, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "pyproject.toml").write_text('[project.entry-points."fvd.plugins"]\nltx = "t_ltx"\n')
    install("acme-later", direct_url={"url": source.as_uri(), "dir_info": {"editable": True}})
    for version in ("1.0", "2.0"):
        install("twice", version, entry_points={"twice": "t_twice"}, modules={"t_twice": ""})
        install("irrelevant", version)
    status, found = diagnose(capsys)
    assert status == 0
    assert [warning["plugin"] for warning in found["warnings"] if warning["code"] == "W02"] == ["acme-later"]
    twice = [warning["message"] for warning in found["warnings"] if "installed more than once" in warning["message"]]
    assert [message.split()[0] for message in twice] == ["twice"]


# --- deps ------------------------------------------------------------------------------------------------------------
def deps(capsys, tmp_path, text: str) -> tuple[int, list[str], str]:
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    status = main(["plugins", "deps", str(path)])
    captured = capsys.readouterr()
    return status, captured.out.splitlines(), captured.err


def test_deps_with_nothing_installed(install, capsys, tmp_path):
    """Names of core need nothing, others come from the catalogue; that the file has mistakes does not matter."""
    text = """
        recipe: {family: wan, method: dmd2, colour: blue}
        roles: {student: {path: x, family: toy}, teacher: 3}
        training: {trackers: "wandb, none"}
        pipeline_config: {sampler_kind: ode}
    """
    assert deps(capsys, tmp_path, text) == (0, ["fvd-dmd2", "fvd-wan"], "")


def test_deps_prefers_what_the_file_requires(install, capsys, tmp_path):
    text = """
        recipe: {family: wan, method: finetune}
        plugins: {require: ["fvd_wan>=0.1,<0.2", "acme-tracker==3"]}
    """
    assert deps(capsys, tmp_path, text) == (0, ["acme-tracker==3", "fvd-finetune", "fvd_wan>=0.1,<0.2"], "")


def test_deps_keeps_every_requirement_of_one_distribution(install, capsys, tmp_path):
    text = "recipe: {family: wan}\nplugins: {require: ['fvd-wan>=0.1', 'fvd_wan<0.3']}"
    assert deps(capsys, tmp_path, text) == (0, ["fvd-wan>=0.1", "fvd_wan<0.3"], "")


def test_deps_of_installed_plugins(install, capsys, tmp_path):
    install_some(install)
    text = "recipe: {family: ltx, method: 'acme_algo:hard'}\nroles: {student: {family: 'acme-wan:wan'}}"
    status, lines, complaint = deps(capsys, tmp_path, text)
    assert (status, lines) == (1, ["acme-algo", "acme-ltx"])
    assert "the family 'acme-wan:wan'" in complaint  # never the words of the file as a package to install


def test_deps_never_guesses(install, capsys, tmp_path):
    status, lines, complaint = deps(capsys, tmp_path, "recipe: {family: wan, method: rcm}\ntraining: {trackers: [mlflow]}")
    assert (status, lines) == (1, ["fvd-wan"])
    assert len(complaint.splitlines()) == 2
    assert "method 'rcm'" in complaint
    assert "tracker 'mlflow'" in complaint
    assert "fvd-rcm" not in complaint
    # But a distribution that the file itself requires may be the one.
    text = "recipe: {family: wan, method: rcm}\nplugins: {require: [acme-rcm>=1]}"
    assert deps(capsys, tmp_path, text) == (0, ["acme-rcm>=1", "fvd-wan"], "")
    assert deps(capsys, tmp_path, text.replace("acme-rcm>=1", "'acme rcm 1'"))[:2] == (1, ["fvd-wan"])


def test_deps_of_a_pipeline_config_elsewhere(install, capsys, tmp_path):
    install("acme-heun", entry_points={"heun": "t_h"}, modules={"t_h": SAMPLER})
    (tmp_path / "pipeline.yaml").write_text("sampler_kind: heun")
    older = "recipe: {family: wan}\ntraining: {sampler_kind: heun}"
    assert deps(capsys, tmp_path, older) == (0, ["acme-heun", "fvd-wan"], "")
    text = "recipe: {family: wan}\npipeline_config_path: pipeline.yaml"
    assert deps(capsys, tmp_path, text) == (0, ["acme-heun", "fvd-wan"], "")


def test_deps_of_a_component_of_a_file(install, capsys, tmp_path):
    """Nothing can be installed for it, and that is said."""
    path = tmp_path / "a_local_needed.py"
    path.write_text(textwrap.dedent(ALGORITHM))
    (tmp_path / "run.yaml").write_text("recipe: {family: wan, method: easy}")
    assert main(["plugins", "deps", str(tmp_path / "run.yaml"), "--plugin", str(path)]) == 0
    captured = capsys.readouterr()
    assert captured.out == "fvd-wan\n"
    assert captured.err == f"fvd: method 'easy' comes from a file, which is needed itself: --plugin {path}\n"


def test_deps_of_what_is_no_run_file(install, capsys, tmp_path):
    assert deps(capsys, tmp_path, "recipe: {family: [")[:2] == (1, [])
    assert deps(capsys, tmp_path, "- wan")[:2] == (1, [])
    for text, complaint in (
        ('"""A method."""\n\nimport fvd\n', "not valid YAML"),
        ("import fvd\n", "must be a mapping"),
        ("steps: int = 1\n", "is no run file: it has none of its sections"),
        ("# nothing yet\n", "is no run file: it is empty"),
    ):
        status, lines, said = deps(capsys, tmp_path, text)
        assert (status, lines) == (1, [])
        assert complaint in said
        assert said.splitlines()[-1].startswith("`fvd plugins deps` takes a run file")
    assert main(["plugins", "deps", str(tmp_path / "runn.yaml")]) == 1
    assert "did you mean 'run.yaml'" in capsys.readouterr().err


SAMPLER = """
    import fvd

    @fvd.hookimpl
    def fvd_samplers():
        return [fvd.SamplerSpec(name="heun", target="m.h:heun", scheduler="ode")]
"""


# --- light -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "words",
    [
        ["plugins", "show", "toy"],
        ["plugins", "example", "toy"],
        ["plugins", "deps", "{folder}/run.yaml"],
        ["plugins", "explain", "P03"],
        ["plugins", "new", "fvd-lightest", "--kind", "family", "--into", "{folder}"],
        ["schema"],
    ],
    ids=lambda words: words[1] if len(words) > 1 else words[0],
)
def test_these_commands_load_no_torch(words, tmp_path):
    (tmp_path / "run.yaml").write_text("recipe: {family: toy, method: toy}")
    argv = [word.format(folder=tmp_path) for word in words]
    loaded = loaded_modules(f"from fvd.cli.main import main; assert main({argv!r}) == 0")
    assert not loaded & {"torch", "numpy", "diffusers", "transformers"}
