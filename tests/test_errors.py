"""What a user is told: one line of a length that can be read, with numbers as people write them."""

import math

import pytest

from ddpo3d_fast.errors import InputError, check_text, number


@pytest.mark.parametrize("value", ["word " * 5000, 'it\'s a "word" ' * 2000, "'" * 9000, "\\" * 9000])
def test_a_message_does_not_repeat_a_huge_value_whole(value):
    line = str(InputError(f"--prompt: expected at most 77 tokens, got 5000: shorten {value!r} please"))
    assert line.startswith("--prompt: expected at most 77 tokens, got 5000: shorten ")
    assert line.endswith(" please")
    assert " ... " in line
    assert len(line) < 500


def test_a_message_of_huge_values_without_quotes_is_cut_as_well():
    line = str(InputError(f"--output: cannot write to {'n' * 5000}: File name too long"))
    assert line.startswith("--output: cannot write to n")
    assert line.endswith("n: File name too long")
    assert len(line) < 1600


@pytest.mark.parametrize(
    "line",
    [
        "--reward: the hub's cache has none (" + "a reason, " * 50 + ") nor has torch's",
        f"--lora: expected a .safetensors file, got {'/folder' * 40!r}",
        "--prompt: the embedded prior does not know 'dragon'; it knows " + "things, " * 60,
    ],
)
def test_messages_of_usual_length_are_told_whole(line):
    assert str(InputError(line)) == line


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2**32 - 1, "4294967295"),
        (10_000_000, "10000000"),
        (1e6, "1000000"),
        (0.0, "0"),
        (-90.0, "-90"),
        (1e-6, "1e-06"),
        (0.999, "0.999"),
        (math.inf, "inf"),
        (math.nan, "nan"),
    ],
)
def test_whole_numbers_have_all_their_digits(value, text):
    assert number(value) == text


def test_text_that_is_no_utf_8_is_refused():
    check_text("--prompt", "красный гриб 🍄")
    with pytest.raises(InputError, match=r"^--prompt: expected text in UTF-8, got 'a \\udcff'$"):
        check_text("--prompt", "a \udcff")
