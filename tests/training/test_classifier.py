"""The judge: it names true renders, and its training command works."""

from pathlib import Path

import pytest
import torch

from ddpo3d_fast.training import classifier
from ddpo3d_fast.training.classifier import (
    Classifier,
    load_classifier,
    right_answers,
    roughen,
    save_classifier,
)
from ddpo3d_fast.training.objects import CLASS_NAMES, COLOR_NAMES

JUDGES = Path(__file__).parents[2] / "benchmarks" / "judges"


def test_judge_names_class_and_colour_of_new_individuals(source):
    class_right, color_right, _, _ = right_answers(load_classifier(JUDGES), source)
    assert class_right.float().mean() >= 0.95
    assert color_right.float().mean() >= 0.95


def test_judge_survives_rough_pictures(source):
    views = source.draw(96)
    class_logits, color_logits = load_classifier(JUDGES)(roughen(views, source.generator))
    assert (class_logits.argmax(1) == views.classes).float().mean() >= 0.9
    assert (color_logits.argmax(1) == views.colors).float().mean() >= 0.9


def test_judge_is_small():
    assert (JUDGES / "classifier.safetensors").stat().st_size < 4e6


def test_coarse_coding_with_a_tiny_step_changes_nothing():
    pictures = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        classifier._requantize(pictures, torch.full((2,), 1e-6)), pictures, atol=1e-4, rtol=0
    )
    assert (classifier._requantize(pictures, torch.full((2,), 0.1)) - pictures).abs().mean() > 1e-2


def test_saved_judge_answers_as_before(tmp_path):
    model = Classifier(classifier.WIDTHS, len(CLASS_NAMES), len(COLOR_NAMES))
    model.train()(torch.rand(8, 3, 64, 64))  # moves the running statistics
    save_classifier(model, tmp_path)
    pictures = torch.rand(4, 3, 64, 64)
    for mine, loaded in zip(model.eval()(pictures), load_classifier(tmp_path)(pictures), strict=True):
        torch.testing.assert_close(mine, loaded, atol=5e-3, rtol=5e-3)


def test_training_command_learns_and_repeats(dataset, tmp_path, monkeypatch, capsys):
    weights = []
    for run in range(2):
        output = tmp_path / f"judge-{run}"
        arguments = ["--dataset", str(dataset), "--output", str(output), "--samples", "256", "--batch", "32"]
        monkeypatch.setattr("sys.argv", ["classifier", *arguments])
        classifier.main()
        weights.append((output / "classifier.safetensors").read_bytes())
    assert weights[0] == weights[1]
    assert "held out, 96 views" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError):
        load_classifier(dataset)
