"""`fvd plugins new`: what it writes is a whole plugin that passes the conformance kit as it is."""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import yaml
from code_lines import code_lines
from torch import Tensor

import fvd
from fvd.cli.main import main
from fvd.plugins import load_plugins
from fvd.scaffold import LIBRARIES, NewPlugin, render
from fvd.testing import assert_light_module, fake_dist, installed_in

CORE_RANGE = "fvd-core>=0.1,<1"


@contextmanager
def installed(project: Path, site: Path) -> Iterator[None]:
    """As `pip install -e` does it: metadata made from pyproject.toml, and the sources in place."""
    about = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    fake_dist(
        site,
        about["name"],
        about["version"],
        entry_points=about["entry-points"]["fvd.plugins"],
        requires=about["dependencies"],
        summary=about["description"],
    )
    with installed_in(site), installed_in(project / "src"):
        yield


def write(folder: Path, distribution: str, kind: str) -> Path:
    assert main(["plugins", "new", distribution, "--kind", kind, "--into", str(folder)]) == 0
    return folder / distribution


# --- what is written ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", LIBRARIES)
def test_a_whole_distribution(kind, tmp_path, capsys):
    project = write(tmp_path, "fvd-ltx", kind)
    out = capsys.readouterr().out.splitlines()
    files = sorted(path.relative_to(project).as_posix() for path in project.rglob("*") if path.is_file())
    assert out[0] == f"{project}: the {kind} ltx"
    assert sorted(line.strip() for line in out[1 : out.index("next:")]) == files
    assert out[out.index("next:") + 1 :][:2] == [f"  python -m pip install -e {project}", "  fvd plugins check ltx"]
    code = {"family": {"config", "family"}, "method": {"config", "method"}}.get(kind, {kind})
    assert set(files) == {
        *(".gitignore", "README.md", "pyproject.toml", "tests/test_ltx.py", "src/fvd_ltx/__init__.py", "src/fvd_ltx/plugin.py"),
        *(f"src/fvd_ltx/{name}.py" for name in code),
    }
    about = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))
    assert about["project"]["name"] == "fvd-ltx"
    assert about["project"]["dependencies"][0] == CORE_RANGE
    assert about["project"]["keywords"] == ["fvd-plugin"]
    assert about["project"]["entry-points"] == {"fvd.plugins": {"ltx": "fvd_ltx.plugin"}}
    assert "pytest>=8" in about["dependency-groups"]["test"]
    texts = {file: (project / file).read_text(encoding="utf-8") for file in files}
    # `$ ` is a prompt in a README; any other would be a placeholder that was not filled in.
    assert [file for file, text in texts.items() if "$" in text.replace("$ ", "")] == []
    assert texts["README.md"].count("\n$ ") == 3
    for file in files:
        assert [line for line in texts[file].splitlines() if len(line) > 128 or line != line.rstrip()] == [], file
        assert file == "src/fvd_ltx/__init__.py" or texts[file].endswith("\n")


def test_the_range_of_core_follows_the_running_core(monkeypatch):
    monkeypatch.setattr(fvd, "__version__", "3.12.1")
    text = render(NewPlugin("fvd-ltx", "tracker"))[Path("pyproject.toml")]
    assert tomllib.loads(text)["project"]["dependencies"] == ["fvd-core>=3.12,<4"]


@pytest.mark.parametrize(("kind", "limit"), [("family", 60), ("method", 60)])
def test_a_whole_plugin_is_short(kind, limit):
    sources = [text for path, text in render(NewPlugin("fvd-ltx", kind)).items() if path.parts[0] == "src"]
    assert sum(len(code_lines(source)) for source in sources) <= limit


@pytest.mark.parametrize(
    ("distribution", "package", "name", "class_name"),
    [
        ("fvd-ltx", "fvd_ltx", "ltx", "LtxTracker"),
        ("acme-ltx", "acme_ltx", "acme_ltx", "AcmeLtxTracker"),
        ("fvd.my_csv", "fvd_my_csv", "my_csv", "MyCsvTracker"),
    ],
)
def test_names(distribution, package, name, class_name, tmp_path):
    project = write(tmp_path, distribution, "tracker")
    assert class_name in (project / f"src/{package}/tracker.py").read_text(encoding="utf-8")
    with installed(project, tmp_path / "site"):
        plugins = load_plugins()
        assert name in plugins.names("tracker")
        assert plugins.load("tracker", name)


# --- what is refused ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("distribution", "kind", "complaint"),
    [
        ("Fvd-Ltx", "family", "For example: fvd-ltx"),
        ("fvd ltx", "family", "For example: fvd-ltx"),
        ("9-lives", "family", "For example: fvd-lives"),
        ("../ltx", "family", "For example: fvd-ltx"),
        ("fvd-", "family", "For example: fvd-mine"),
        ("fvd-wan", "sampler", "fvd-wan"),
        ("fvd_wan", "sampler", "fvd-wan"),
        ("acme-x", "command", "invalid choice"),
        ("ode", "sampler", "sampler 'ode' is provided by the installed plugin core"),
        ("fvd-toy", "method", "toy"),
        ("fvd-core", "tracker", "core"),
        ("json", "tracker", "there is a module 'json' already"),
        ("fvd-class", "tracker", "class is a word of Python"),
        ("fvd-4d", "tracker", "For example: fvd-d"),
        ("fvd-1x", "tracker", "'fvd-1x' cannot be its name: what comes after `fvd-` must begin with a letter\n"),
        ("1x", "tracker", "'1x' cannot be its name: it must begin with a letter\n"),
        ("fvd-größe", "tracker", "in words joined by `-`\nFor example: fvd-mine\n"),
        ("視頻", "tracker", "For example: fvd-mine\n"),
        ("fvd-none", "tracker", "'fvd-none' cannot be used: `trackers: none` means that there is none\n"),
        ("none", "tracker", "`trackers: none`"),
        ("local", "sampler", "'local' cannot be used: local stands for plugins that are one file\n"),
        ("fvd-local", "tracker", "local stands for plugins that are one file"),
        ("fvd", "tracker", "there is a module 'fvd' already"),
        ("pytest", "tracker", "there is a module 'pytest' already"),
    ],
)
def test_names_that_cannot_be_used(distribution, kind, complaint, tmp_path, capsys):
    assert main(["plugins", "new", distribution, "--kind", kind, "--into", str(tmp_path)]) in (1, 2)
    captured = capsys.readouterr()
    assert complaint in captured.err
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_stays_as_it_is(tmp_path, capsys):
    (tmp_path / "fvd-ltx").mkdir()
    assert main(["plugins", "new", "fvd-ltx", "--kind", "family", "--into", str(tmp_path)]) == 1
    assert "exists already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["fvd-ltx"]
    assert main(["plugins", "new", "fvd-ltx", "--kind", "family", "--into", str(tmp_path / "nowhere")]) == 1
    assert "there is no folder" in capsys.readouterr().err


def test_half_a_distribution_is_never_left(tmp_path, monkeypatch, capsys):
    written: list[Path] = []
    write_text = Path.write_text

    def fill_the_disk(path: Path, *args: object, **options: object) -> int:
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        written.append(path)
        return write_text(path, *args, **options)

    monkeypatch.setattr(Path, "write_text", fill_the_disk)
    assert main(["plugins", "new", "fvd-ltx", "--kind", "family", "--into", str(tmp_path)]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_name_of_an_installed_plugin_is_taken(tmp_path, capsys):
    source = "import fvd\n\n\n@fvd.hookimpl\ndef fvd_trackers():\n    return [fvd.TrackerSpec(name='table', target='a.b:C')]\n"
    fake_dist(tmp_path / "site", "acme-x", entry_points={"ltx": "t_ltx"}, modules={"t_ltx": source})
    with installed_in(tmp_path / "site"):
        assert main(["plugins", "new", "fvd-ltx", "--kind", "family", "--into", str(tmp_path)]) == 1
        assert "plugin ltx (acme-x 1.0) is installed" in capsys.readouterr().err
        assert main(["plugins", "new", "fvd-table", "--kind", "tracker", "--into", str(tmp_path)]) == 1
        assert "tracker 'table' is provided by the installed plugin ltx" in capsys.readouterr().err
        write(tmp_path, "fvd-table", "sampler")  # another kind, another name


def test_a_bad_plugin_does_not_matter(tmp_path):
    fake_dist(tmp_path / "site", "x-torn", entry_points={"torn": "t_torn"}, modules={"t_torn": "1 / 0"})
    with installed_in(tmp_path / "site"):
        write(tmp_path, "fvd-ltx", "tracker")


# --- it works ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", LIBRARIES)
def test_it_passes_the_conformance_kit(kind, tmp_path, capsys):
    name = f"mine_{kind}"  # a name of its own: modules of an earlier test may be in memory
    project = write(tmp_path, f"fvd-mine-{kind}", kind)
    with installed(project, tmp_path / "site"):
        assert_light_module(f"fvd_{name}.plugin")
        capsys.readouterr()
        assert main(["plugins", "check", name]) == 0, capsys.readouterr().out
        assert "failed" not in capsys.readouterr().out
        assert main(["plugins", "show", name]) == 0


def test_the_method_computes_what_it_says(tmp_path, monkeypatch):
    """Where the student is the teacher, its loss is (s - 1)^2 mean((cond - uncond)^2); without guidance it is 0."""
    monkeypatch.chdir(tmp_path)
    with installed(write(tmp_path, "fvd-exact-method", "method"), tmp_path / "site"):
        for scale in (1.0, 3.0):
            document = {
                "recipe": {"family": "toy", "method": "exact_method"},
                "roles": {"student": {"path": "random"}, "teacher": {"path": "random"}},
                "training": {"output_dir": f"outputs/{scale}", "max_train_steps": 1, "train_batch_size": 16},
                "method_config": {"guidance_scale": scale},
            }
            Path("run.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
            assert main(["run", "run.yaml"]) == 0
            (row,) = [json.loads(line) for line in Path(f"outputs/{scale}/metrics.jsonl").read_text().splitlines()]
            assert row["train/guidance"] > 0
            assert row["train/loss"] == pytest.approx((scale - 1) ** 2 * row["train/guidance"] ** 2, rel=1e-5)


def test_the_sampler_computes_what_it_says(tmp_path):
    """For a model that knows x0 = 3: from noise along a straight line, and x0 itself at the end."""

    class Model:
        num_train_timesteps = 1000
        seen: ClassVar[list[Tensor]] = []

        def predict_x0(self, x_t: Tensor, t: Tensor) -> Tensor:
            self.seen.append(x_t)
            return torch.full_like(x_t, 3.0)

        def predict_noise(self, x_t: Tensor, t: Tensor) -> Tensor:
            sigma = t.reshape(-1, 1, 1, 1, 1) / 1000
            return (x_t - (1 - sigma) * 3) / sigma

        def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
            sigma = t.reshape(-1, 1, 1, 1, 1) / 1000
            return (1 - sigma) * x0 + sigma * noise

    with installed(write(tmp_path, "fvd-exact-sampler", "sampler"), tmp_path / "site"):
        sample = load_plugins().load("sampler", "exact_sampler")
    noise = torch.randn(2, 1, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    result = sample(Model(), noise, scheduler=None, timesteps=torch.tensor([1000.0, 600.0, 200.0]), generators=[])
    assert torch.equal(result, torch.full_like(noise, 3.0))
    for x_t, sigma in zip(Model.seen, (1.0, 0.6, 0.2), strict=True):
        torch.testing.assert_close(x_t, (1 - sigma) * 3 + sigma * noise)


def test_the_family_runs_every_installed_method(tmp_path, clips, monkeypatch, capsys):
    """As its author would do it, with a sampler and a tracker that are new as well."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("a red square\n", encoding="utf-8")
    names = {kind: f"try_{kind}" for kind in ("family", "method", "sampler", "tracker")}
    projects = [write(tmp_path, f"fvd-try-{kind}", kind) for kind in names]
    with ExitStack() as stack:
        for project in projects:
            stack.enter_context(installed(project, tmp_path / "site"))
        prepare = ["data", "prepare", str(clips), "--family", "try_family", "--model", "random", "--out", "data/try_family"]
        assert main(prepare) == 0
        methods = load_plugins().names("method")
        assert "try_method" in methods
        for method in methods:
            run(method, names, capsys)
    assert "fvd_try_family.family" not in sys.modules


def run(method: str, names: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["plugins", "example", names["family"], "--method", method]) == 0
    document = yaml.safe_load(capsys.readouterr().out)
    document["training"] |= {
        "max_train_steps": 2,
        "log_validation": True,
        "validation_dataset_file": "prompts.txt",
        "validation_sampling_steps": [2],
        "trackers": [names["tracker"]],
    }
    document["pipeline_config"] = {"sampler_kind": names["sampler"], "negative_prompt": "blurry"}
    path = Path(f"{method}.yaml")
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    assert main(["run", str(path)]) == 0
    folder = Path(document["training"]["output_dir"])
    assert list((folder / "validation/step-00000002").glob("*.mp4"))
    (table,) = folder.rglob("metrics.csv")
    assert {row.partition(",")[0] for row in table.read_text(encoding="utf-8").splitlines()} >= {"1", "2"}
