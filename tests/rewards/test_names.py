"""NAME@WHERE: which of its words are paths."""

from __future__ import annotations

import os

import pytest

from ddpo3d_fast.rewards.names import split_predictor
from ddpo3d_fast.rewards.specs import map_paths


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Some files and folders in the working directory, which is the home folder, too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("p.pth", "c.pt", "a,b.pth", "x:y.pt"):
        (tmp_path / name).touch()
    (tmp_path / "folder").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("name", "absolute"),
    [
        ("embedded", "embedded"),
        ("aesthetic", "aesthetic"),
        ("clip@c.pt", "clip@HERE/c.pt"),
        ("clip@./c.pt", "clip@HERE/c.pt"),
        ("clip@~/c.pt", "clip@HERE/c.pt"),
        ("clip@folder", "clip@HERE/folder"),
        ("clip@x:y.pt", "clip@HERE/x:y.pt"),
        ("clip@a,b.pth", "clip@HERE/a,b.pth"),
        ("clip@ViT-L-14:c.pt", "clip@ViT-L-14:HERE/c.pt"),
        ("clip@ViT-L-14:~/c.pt", "clip@ViT-L-14:HERE/c.pt"),
        ("clip@ViT-L-14:openai", "clip@ViT-L-14:openai"),
        ("clip@hf-hub:someone/clip", "clip@hf-hub:someone/clip"),
        ("clip@missing.pt", "clip@missing.pt"),
        ("hps@folder", "hps@HERE/folder"),
        ("pickscore@folder", "pickscore@HERE/folder"),
        ("pickscore@someone/folder", "pickscore@someone/folder"),
        ("aesthetic@folder", "aesthetic@HERE/folder"),
        ("aesthetic@p.pth", "aesthetic@HERE/p.pth"),
        ("aesthetic@p.pth,c.pt", "aesthetic@HERE/p.pth,HERE/c.pt"),
        ("aesthetic@~/p.pth,~/c.pt", "aesthetic@HERE/p.pth,HERE/c.pt"),
        ("aesthetic-v1@p.pth,ViT-L-14:c.pt", "aesthetic-v1@HERE/p.pth,ViT-L-14:HERE/c.pt"),
        ("aesthetic@p.pth,hf-hub:a/b", "aesthetic@HERE/p.pth,hf-hub:a/b"),
        ("aesthetic@a,b.pth", "aesthetic@HERE/a,b.pth"),
        ("aesthetic@a,b.pth,c.pt", "aesthetic@HERE/a,b.pth,HERE/c.pt"),
        ("folder:function", "folder:function"),
        ("mine@c.pt:function", "mine@c.pt:function"),
    ],
)
def test_paths_are_told_from_other_words(here, name, absolute):
    assert map_paths(name, os.path.abspath) == absolute.replace("HERE", str(here))


def test_a_clip_that_is_named_is_apart_from_the_predictor_there_or_not():
    assert split_predictor("p.pth,no.pt") == ("p.pth", "no.pt")
    assert split_predictor("no.pth,c.pt") == ("no.pth,c.pt", "")
