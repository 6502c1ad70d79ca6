"""The set of libraries: one place says it, Colab can take it, and preflight notices when it is not there."""

import re
import subprocess
import sys
import tomllib

import pytest

from pockettune import environment

LOADED_IN_COLAB = ["numpy", "ipykernel", "ipython", "traitlets", "pyzmq", "tornado", "jupyter-client"]


def pins(path) -> dict[str, str]:
    lines = [line.split("#")[0].strip() for line in path.read_text().splitlines()]
    return {m[1].lower().replace("_", "-"): m[2] for line in lines if (m := re.match(r"([\w.-]+)(.*)", line))}


def test_supported_versions_are_those_of_the_requirements(root):
    wanted = pins(root / "requirements.txt") | pins(root / "requirements-unsloth.txt")
    assert {name: wanted[name.replace("_", "-")] for name in environment.SUPPORTED} == environment.SUPPORTED


def test_the_package_declares_no_dependencies(root):
    assert tomllib.loads((root / "pyproject.toml").read_text())["project"]["dependencies"] == []


def test_the_set_resolves_on_colab_without_moving_what_runs_there(root, tmp_path):
    """Asks the package index what Colab (Python 3.13, torch 2.11.0) would get; prints what it would replace."""
    image = pins(root / "tests/colab_image.txt")
    held = [name for name in image if name.replace("_", "-") in ["torch", "pandas", *LOADED_IN_COLAB]]
    assert len(held) == 2 + len(LOADED_IN_COLAB), "the stored list of Colab's versions lacks a package"
    constraints = tmp_path / "held.txt"
    constraints.write_text("".join(f"{name}{image[name].partition('+')[0]}\n" for name in held))
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--no-config"]
    command += ["--python-version", "3.13", "--python-platform", "x86_64-manylinux_2_35", "--constraint", constraints]
    done = subprocess.run([*command, root / "requirements.txt"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"the set cannot be installed beside what Colab has loaded:\n{done.stderr}"

    chosen = dict(line.split("==") for line in done.stdout.split() if "==" in line)
    replaced = {
        name: (image[name].removeprefix("=="), version)
        for name, version in chosen.items()
        if name in image and image[name].removeprefix("==").partition("+")[0] != version.partition("+")[0]
    }
    print(
        "replaced on Colab:", *(f"{name} {old} -> {new}" for name, (old, new) in sorted(replaced.items())), sep="\n  "
    )
    assert not {"torch", *LOADED_IN_COLAB} & replaced.keys()
    assert {"datasets", "pyarrow"} <= replaced.keys(), "Colab's datasets 4.0 and pyarrow 18 are refused by the stack"


def test_preflight_prints_versions_device_and_precision(capsys):
    found = environment.preflight()
    shown = capsys.readouterr().out
    assert "unsloth 2026" in shown and found.device in shown and found.precision.reason in shown


def test_preflight_names_the_command_that_mends_a_wrong_version(monkeypatch):
    monkeypatch.setattr(environment, "version", lambda name: {"trl": "1.16.0"}.get(name) or "2026.10.9")
    with pytest.raises(RuntimeError, match=r"trl 1.16.0 \(needs ==1.15.0\)[^$]*pip install -r requirements.txt"):
        environment.preflight()


def test_preflight_refuses_colabs_torchao(monkeypatch):
    real = environment.version
    monkeypatch.setattr(environment, "version", lambda name: "0.10.0" if name == "torchao" else real(name))
    with pytest.raises(RuntimeError, match="pip uninstall -y torchao"):
        environment.preflight()


def test_preflight_can_insist_on_a_gpu():
    with pytest.raises(RuntimeError, match="Runtime > Change runtime type"):
        environment.preflight(allow_cpu=False)


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, pockettune; print({'torch', 'unsloth', 'trl', 'transformers', 'datasets'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
