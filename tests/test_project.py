"""The repository as a whole: one address, true README, nothing that belongs to one machine."""

import json
import re
import subprocess
import tomllib


def tracked(root):
    names = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=root, capture_output=True, text=True)
    return [root / name for name in names.stdout.split("\n") if name and (root / name).is_file()]


def text_of(path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


def test_the_address_stands_in_one_place_and_badges_and_setup_cells_equal_it(root):
    address = tomllib.loads((root / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
    owner = address.removeprefix("https://github.com/")
    readme = (root / "README.md").read_text()
    for source in sorted((root / "notebooks").glob("*.py")):
        text = source.read_text()
        assert f"https://colab.research.google.com/github/{owner}/blob/main/notebooks/{source.stem}.ipynb" in readme
        assert f"colab.research.google.com/github/{owner}/blob/main/notebooks/{source.stem}.ipynb" in text
        assert f"git clone -q --depth 1 {address} " in text
    for path in tracked(root):
        for other in re.findall(r"github(?:\.com)?/([\w-]+/pockettune)\b", text_of(path)):
            assert other == owner, path.name


def test_the_file_tree_in_the_readme_is_true(root):
    (tree,) = re.findall(r"```text\n(.*?)```", (root / "README.md").read_text(), re.DOTALL)
    folders, named = [], set()
    for line in tree.splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        folders = [*folders[:depth], name]
        path = root.joinpath(*folders)
        assert path.exists(), name
        named.add(path)
    modules = {
        path for path in tracked(root) if path.suffix == ".py" and "src" in path.parts and path.name != "__init__.py"
    }
    assert modules <= named, [path.name for path in modules - named]


def test_every_command_the_readme_names_is_there(root):
    makefile = (root / "Makefile").read_text()
    for target in re.findall(r"make ([a-z-]+)", (root / "README.md").read_text()):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_numbers_quoted_in_the_readme_are_those_of_the_run_cards(root):
    """Each row of the result tables names its card; its percentages and n stand in that card."""
    head, checked = [], 0
    for line in (root / "README.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if "model" in cells:
            head = [cell.lower().replace(" ", "_") for cell in cells]
        if not (found := re.search(r"\[card\]\((notebooks/run_cards/[\w.]+)\)", line)):
            continue
        card = json.loads((root / found[1]).read_text())
        row = dict(zip(head, cells, strict=True))
        assert row.pop("n") == str(card["data"]["eval"]["rows"]) and card["date"] in row.pop("")
        scores, _ = card["scores"][row.pop("model")], row.pop("run")
        for name, cell in row.items():
            assert cell == "{mean:.0f} [{low:.0f}, {high:.0f}]".format(**{k: 100 * v for k, v in scores[name].items()})
            checked += 1
    assert checked > 20


def test_nothing_is_tracked_that_a_run_makes(root):
    names = [str(path.relative_to(root)) for path in tracked(root)]
    assert [
        n
        for n in names
        if re.search(r"(^|/)(\.venv|outputs|__pycache__|unsloth_compiled_cache)/|\.(gguf|safetensors|whl)$", n)
    ] == []
    assert [path.name for path in tracked(root) if path.stat().st_size > 2_000_000] == ["complaints.jsonl"]


def test_no_path_of_one_machine(root):
    pattern = re.compile(r"/(?:root|work|farm|Users)/|/home/\w")
    guilty = [path.name for path in tracked(root) if path.name != "test_project.py" and pattern.search(text_of(path))]
    assert [name for name in guilty if name != "test_evaluation.py"] == []


def test_boundaries(root):
    """Tasks and sources import the standard library; unsloth and trl are imported in one module each."""
    for path in [*(root / "src/pockettune/tasks").glob("*.py"), *(root / "src/pockettune/sources").glob("*.py")]:
        assert not re.search(
            r"^\s*(import|from) (torch|transformers|unsloth|trl|datasets|numpy|pandas)", path.read_text(), re.M
        )
    for library, home in (("unsloth", "models.py"), ("trl", "training.py")):
        users = [
            p.name
            for p in (root / "src").rglob("*.py")
            if re.search(rf"^\s*(import|from) {library}\b", p.read_text(), re.M)
        ]
        assert users == [home]
