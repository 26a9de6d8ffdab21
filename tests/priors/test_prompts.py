"""What the embedded prior understands, and how it refuses what it does not."""

import math

import pytest
import torch

from ddpo3d_fast.errors import InputError
from ddpo3d_fast.priors.caption import VIEW_WORDS, Vocabulary, view_indices
from ddpo3d_fast.priors.prompts import Caption, parse_prompt
from ddpo3d_fast.training.objects import CLASS_NAMES, COLOR_NAMES

VOCABULARY = Vocabulary(CLASS_NAMES, COLOR_NAMES)


def parse(text: str) -> Caption:
    return parse_prompt(text, VOCABULARY, "--prompt")


@pytest.mark.parametrize("thing", CLASS_NAMES)
@pytest.mark.parametrize("color", COLOR_NAMES)
def test_every_object_in_every_color_is_understood(thing, color):
    assert parse(f"a {color} {thing}") == Caption(thing, color)


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        ("mushroom", Caption("mushroom")),
        ("A RED MUSHROOM!", Caption("mushroom", "red")),
        ("red mushrooms", Caption("mushroom", "red")),
        ("two-word: a toadstool", None),
        ("a grey aeroplane", Caption("airplane", "gray")),
        ("a golden cup", Caption("mug", "yellow")),
        ("a red and white mushroom", Caption("mushroom", "red", "white")),
        ("a blue car with black", Caption("car", "blue", "black")),
        ("boxes", Caption("cube")),
        ("cacti", Caption("cactus")),
        ("a green Christmas tree", Caption("tree", "green")),
        ("a black top hat", Caption("hat", "black")),
        ("rubber ducks", Caption("duck")),
        ("a doughnut", Caption("donut")),
        ("a photo of a small wooden chair, highly detailed", Caption("chair", "brown")),
        ("spaceship", Caption("rocket")),
        ("a red red ball", Caption("ball", "red")),
    ],
)
def test_articles_plurals_synonyms_and_second_colors(text, caption):
    if caption is None:
        with pytest.raises(InputError):
            parse(text)
    else:
        assert parse(text) == caption


@pytest.mark.parametrize("text", ["a dragon", "a red", "red mushroom dragon", "a turquoise ball", "?!"])
def test_an_unknown_prompt_is_refused_in_one_line_that_says_what_is_known(text):
    with pytest.raises(InputError) as caught:
        parse(text)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("--prompt: ")
    assert all(name in message for name in (*CLASS_NAMES, *COLOR_NAMES, "--model"))


def test_the_unknown_word_is_named():
    with pytest.raises(InputError, match="does not know 'dragon'"):
        parse("a red dragon")


def test_two_objects_or_three_colors_are_refused():
    with pytest.raises(InputError, match="one object, got car and tree"):
        parse("a car and a tree")
    with pytest.raises(InputError, match="at most two colours"):
        parse("a red green blue ball")


@pytest.mark.parametrize(
    ("degrees", "word"),
    [((0, 0), "front"), ((44, 0), "front"), ((-44, 57), "front"), ((46, 0), "side"), ((-90, 10), "side"),
     ((134, 0), "side"), ((136, 0), "back"), ((-180, 0), "back"), ((350, 0), "front"), ((225.5, 0), "side"),
     ((0, 59), "overhead"), ((180, 80), "overhead")],
)  # fmt: skip
def test_view_words_are_dreamfusions(degrees, word):
    camera = torch.tensor([[*map(math.radians, degrees), 1.0]])
    assert VIEW_WORDS[int(view_indices(camera))] == word
