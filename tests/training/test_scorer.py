"""The two scorers: they rank clean above degraded, agree, and are not the same."""

from pathlib import Path

import pytest
import torch

from ddpo3d_fast.rewards.embedded import FOLDER, EmbeddedReward, ScorerNetwork
from ddpo3d_fast.training import scorer
from ddpo3d_fast.training.degrade import KINDS, degrade, single
from ddpo3d_fast.training.scorer import (
    DEPTHS,
    WIDTHS,
    draw_severities,
    fold,
    load_evaluation_scorer,
    pair_accuracy,
    pair_loss,
    scores_of,
)
from ddpo3d_fast.training.views import composite

JUDGES = Path(__file__).parents[2] / "benchmarks" / "judges"


@pytest.fixture(scope="module")
def scorers():
    return {"embedded": EmbeddedReward().network, "evaluation": load_evaluation_scorer(JUDGES)}


@pytest.mark.parametrize(("name", "finer"), [("embedded", 0.95), ("evaluation", 0.9)])
def test_clean_ranks_above_degraded_and_less_above_more(source, scorers, name, finer):
    """`finer`: two severities of one picture, and clean above degraded across different objects."""
    table = pair_accuracy(scorers[name], source.draw(48, torch.arange(48)), seed=11)
    same, graded, across = torch.tensor(list(table.values())).mean(0).tolist()
    assert same >= 0.95
    assert graded >= finer
    assert across >= finer
    assert set(table) == set(KINDS)


@pytest.mark.parametrize("name", ["embedded", "evaluation"])
def test_clean_scores_about_one_and_fully_degraded_about_nothing(source, scorers, name):
    views = source.draw(48, torch.arange(48))
    clean = scores_of(scorers[name], composite(views.layers, views.backgrounds))
    full = torch.ones(48)
    worst = [
        scores_of(scorers[name], degrade(views.layers, views.backgrounds, single(k, full), 4)).mean()
        for k in KINDS
    ]
    assert abs(clean.mean() - 1) < 0.2
    assert abs(torch.stack(worst).mean()) < 0.2


def test_the_evaluation_scorer_is_another_network_that_agrees(source, scorers):
    views = source.draw(192)
    less, more = draw_severities(192, source.generator)
    pictures = degrade(views.layers, views.backgrounds, torch.cat([less[:96], more[96:]]), 8)
    mine, other = (scores_of(scorers[name], pictures) for name in ("embedded", "evaluation"))
    assert not set(scorers["embedded"].state_dict()) & set(scorers["evaluation"].state_dict()) - {
        "head.weight",
        "head.bias",
    }
    assert (mine - other).abs().mean() > 1e-3
    ranks = torch.stack([scores.argsort().argsort().float() for scores in (mine, other)])
    assert torch.corrcoef(ranks)[0, 1] > 0.8


def test_scorers_are_small():
    assert sum(w.numel() for w in EmbeddedReward().network.state_dict().values()) <= 1.5e6
    assert (FOLDER / "model.safetensors").stat().st_size < 4e6
    assert (JUDGES / "scorer.safetensors").stat().st_size < 4e6


def test_folded_batch_norms_change_nothing():
    torch.manual_seed(0)
    model = ScorerNetwork(WIDTHS, DEPTHS, normalize=True)
    for _ in range(3):
        model.train()(torch.rand(16, 3, 64, 64) ** 2)
    pictures = torch.rand(8, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(fold(model)(pictures), model.eval()(pictures), atol=1e-5, rtol=1e-5)


def test_the_lesser_degradation_is_less_in_every_kind():
    less, more = draw_severities(500, torch.Generator().manual_seed(0))
    kinds = (more > 0).sum(1)
    assert (less <= 0.85 * more + 1e-6).all()
    assert kinds.min() == 1
    assert kinds.max() == 3
    assert 0.7 < (kinds == 1).float().mean() < 0.9


def test_pair_loss_falls_when_the_order_is_right():
    best, middle, worst = torch.full((4,), 3.0), torch.zeros(4), torch.full((4,), -3.0)
    assert pair_loss(best, middle, worst) < pair_loss(middle, middle, middle) < pair_loss(worst, middle, best)


@pytest.mark.parametrize("evaluation", [False, True])
def test_training_command_writes_a_scorer_that_loads(dataset, tmp_path, monkeypatch, capsys, evaluation):
    monkeypatch.setattr(scorer, "REPORT_VIEWS", 24)
    monkeypatch.setattr(scorer, "REPORT_EVERY", 2)
    arguments = [
        "--dataset",
        str(dataset),
        "--output",
        str(tmp_path / "out"),
        "--samples",
        "64",
        "--batch",
        "16",
    ]
    monkeypatch.setattr("sys.argv", ["scorer", *arguments, *(["--evaluation"] if evaluation else [])])
    scorer.main()
    assert "held-out pairs in order" in capsys.readouterr().out
    loaded = (
        load_evaluation_scorer(tmp_path / "out")
        if evaluation
        else EmbeddedReward(folder=tmp_path / "out").network
    )
    assert torch.isfinite(scores_of(loaded, torch.rand(2, 3, 64, 64))).all()
