"""The READMEs: links and numbers. And what the three folders share. Each test names the mutation that breaks it."""

import ast
import importlib.util
import re

import pytest

from conftest import ROOT

TOP = ROOT.parent
FOLDERS = [TOP / name for name in ("Classification", "DDPM", "SD")]
together = pytest.mark.skipif(not all(folder.is_dir() for folder in FOLDERS), reason="this folder was copied away alone")
SAME = {  # files: functions and classes that must carry the same text where two folders have them. To extend it, add a name.
    "data.py": ["derive_seed", "make_generator", "class_numbers", "unpadded", "say", "to_device", "forget_sha"],
    "trainer.py": ["average_gradients", "check_gradients", "load_optimizer", "Log", "average_weights", "squared_error"],
    "imagesets.py": ["class_folders", "find_splits", "read_folder", "decode", "decode_both", "folder_stamp", "check_arrays", "content_sha"],
    "metrics.py": ["accuracy", "register_features"],
    "passes.py": ["without_autocast", "loss_scale"],
    "sampling.py": ["grid", "write_gif"],
    "models.py classifiers.py": ["read_weights", "hub_weights", "Classifier", "build_classifier"],
    "methods/salun_soft.py": ["proximal_step"],
}


def definitions(path, names):
    """{name: source text without indentation} of functions and classes in a file, nested ones too. {} where there is no file."""
    text = path.read_text() if path.is_file() else ""
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name in names]
    return {node.name: ast.unparse(node) for node in nodes}


@together
@pytest.mark.parametrize("files", SAME)
def test_what_claims_to_be_the_same_is_the_same(files):
    """Mutation: change one of these functions in one folder, or move it to another file."""
    found = [definitions(folder / file, SAME[files]) for folder in FOLDERS for file in files.split()]
    for name in SAME[files]:
        texts = [one[name] for one in found if name in one]
        assert len(texts) > 1 and len(set(texts)) == 1, f"{name} in {files} differs between the folders"


@together
def test_relative_links_of_all_readmes_resolve():
    """Mutation: rename a file that a README links or shows."""
    pages = [TOP / "README.md", TOP / ".github" / "CONTRIBUTING.md", *(folder / "README.md" for folder in FOLDERS)]
    for page in pages:
        links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
        assert links or page.parent.name == ".github"
        for link in links:
            path, _, anchor = link.partition("#")
            if "://" in link:
                continue
            target = page.parent / path if path else page
            assert target.exists(), f"{page} links {link}"
            if anchor and target.suffix == ".md":
                headings = re.findall(r"^#+ (.*)$", target.read_text(), flags=re.M)
                assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}, (
                    f"{page} links {link}"
                )


@together
def test_the_front_page_shows_the_folders_results():
    """Mutation: edit a number on the front page, or in Images/results.md, by hand."""
    spec = importlib.util.spec_from_file_location("front_page", TOP / "Images" / "front_page.py")
    front_page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(front_page)
    written = (TOP / "Images" / "results.md").read_text()
    shown = (TOP / "README.md").read_text().split("<!-- Images/results.md -->\n", 1)[1].split("<!-- end -->", 1)[0]
    assert shown == written == front_page.results()
