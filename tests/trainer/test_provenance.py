import subprocess

import torch

from nnunet_ad.trainer.provenance import device_name, git_commit, plan_hash, versions


def git(folder, *arguments: str) -> str:
    identity = ["-c", "user.name=Nobody", "-c", "user.email=nobody@example.org"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_commit_of_a_checkout_and_whether_files_differ(tmp_path):
    assert git_commit(tmp_path) is None
    git(tmp_path, "init")
    (tmp_path / "file").write_text("1")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-m", "first")
    git(tmp_path, "tag", "v1")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert git_commit(tmp_path) == commit
    (tmp_path / "file").write_text("2")
    assert git_commit(tmp_path) == f"{commit}-dirty"


def test_the_hash_is_that_of_the_content():
    assert plan_hash({"a": 1, "b": [2]}) == plan_hash({"b": [2], "a": 1}) != plan_hash({"a": 1, "b": [3]})


def test_versions_and_device_are_named():
    said = versions()
    assert all(f"{name} " in said for name in ("nnunet_ad", "nnunetv2", "torch", "Python"))
    assert torch.__version__ in said
    assert device_name(torch.device("cpu")).startswith("cpu (")
