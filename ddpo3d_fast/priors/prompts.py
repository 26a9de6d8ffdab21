"""From a person's prompt to a caption in the embedded prior's words: articles, plurals, synonyms and all."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ddpo3d_fast.errors import InputError
from ddpo3d_fast.priors.caption import Vocabulary


@dataclass(frozen=True)
class Caption:
    """One object; None where no colour was named."""

    object: str
    color: str | None = None
    second_color: str | None = None


_OBJECTS = {
    "ball": "sphere orb globe marble",
    "cube": "box block die dice crate",
    "cone": "",
    "cylinder": "tube can barrel pillar column",
    "donut": "doughnut torus",
    "mushroom": "toadstool fungus",
    "snowman": "snowmen",
    "tree": "fir pine spruce conifer evergreen",
    "house": "home cottage cabin hut",
    "rocket": "spaceship rocketship spacecraft",
    "mug": "cup teacup coffeecup",
    "table": "desk",
    "chair": "seat stool",
    "car": "automobile auto sedan",
    "apple": "",
    "lamp": "lampshade",
    "bottle": "",
    "hat": "tophat",
    "cactus": "cacti saguaro",
    "cake": "gateau",
    "duck": "duckling ducky duckie",
    "robot": "android bot",
    "boat": "sailboat ship yacht",
    "airplane": "aeroplane plane aircraft jet airliner",
}
_COLORS = {
    "red": "crimson scarlet ruby",
    "orange": "tangerine",
    "yellow": "golden gold lemon",
    "green": "emerald lime",
    "blue": "navy azure cobalt",
    "purple": "violet lilac",
    "pink": "rose magenta",
    "brown": "chocolate wooden tan",
    "black": "ebony",
    "white": "ivory snowy",
    "gray": "grey silver",
}
_PHRASES = {
    "Christmas tree": "tree",
    "pine tree": "tree",
    "fir tree": "tree",
    "rocket ship": "rocket",
    "space ship": "rocket",
    "top hat": "hat",
    "coffee cup": "mug",
    "tea cup": "mug",
    "coffee mug": "mug",
    "rubber duck": "duck",
    "sailing boat": "boat",
    "table lamp": "lamp",
    "desk lamp": "lamp",
    "birthday cake": "cake",
    "traffic cone": "cone",
    "wine bottle": "bottle",
    "beach ball": "ball",
}
# Words that change nothing the prior knows of.
_FILLER = (
    "a an the one single some of with and in on its this that photo picture image render rendering view 3d "
    "model object asset figure toy small little big large tiny nice cute simple beautiful pretty shiny plain "
    "colored coloured color colour very high quality highly detailed realistic dslr"
)


def _known(words: tuple[str, ...], synonyms: dict[str, str]) -> dict[str, str]:
    return {alias: word for word in words for alias in (word, *synonyms.get(word, "").split())}


def _singular(word: str) -> list[str]:
    """The word and what it may be the plural of."""
    forms = [word]
    for ending, replacement in (("s", ""), ("es", ""), ("ies", "y"), ("ves", "f")):
        if word.endswith(ending) and len(word) > len(ending) + 2:
            forms.append(word.removesuffix(ending) + replacement)
    return forms


def parse_prompt(text: str, vocabulary: Vocabulary, argument: str) -> Caption:
    """The caption that `text` means.

    Raises InputError, naming `argument`, for a prompt with no known object, with two, or with a word that the
    prior does not know: it says what the prior knows, and how to name another model.
    """
    words = re.sub(r"[^a-z0-9]+", " ", text.lower()).strip()
    for phrase, word in _PHRASES.items():
        words = re.sub(rf"\b{phrase.lower()}(s?)\b", word + r"\1", words)
    objects, colors = _known(vocabulary.objects, _OBJECTS), _known(vocabulary.colors, _COLORS)
    found: list[str] = []
    named: list[str] = []
    unknown: list[str] = []
    for word in words.split():
        thing = next((objects[form] for form in _singular(word) if form in objects), None)
        if word in colors:
            named.append(colors[word])
        elif thing is not None:
            found.append(thing)
        elif word not in _FILLER.split():
            unknown.append(word)
    if unknown or not found:
        trouble = f"does not know {unknown[0]!r}" if unknown else f"found no object in {text!r}"
        raise InputError(
            f"{argument}: the embedded prior {trouble}; it knows {', '.join(vocabulary.objects)} in "
            f"{', '.join(vocabulary.colors)}; Stable Diffusion knows more: --model sd21, or a folder of it"
        )
    if len(set(found)) > 1:
        raise InputError(
            f"{argument}: expected one object, got {' and '.join(dict.fromkeys(found))} in {text!r}"
        )
    if len(named) > 2:
        raise InputError(f"{argument}: expected at most two colours, got {len(named)} in {text!r}")
    named = list(dict.fromkeys(named))
    return Caption(found[0], *named)
