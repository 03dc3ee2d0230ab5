"""Short memorable names for allocations, because nobody types a hotkey twice."""

from __future__ import annotations

import random
import re
from collections.abc import Collection

_ADJECTIVES = (
    "amber brave brisk calm clear clever coral crisp deft eager early fair fleet fresh gentle glad "
    "golden grand hardy honest jolly keen kind lively lucid lucky mellow merry misty modest neat nimble "
    "noble olive patient plain proud quick quiet rapid ready rosy royal rustic sharp shiny silent silver "
    "sleek smart snowy solid steady still stout sturdy subtle sunny swift tidy vivid warm wise witty"
)
_ANIMALS = (
    "badger bear beaver bison bobcat camel cobra condor crane crow deer dingo dolphin eagle egret falcon "
    "ferret finch fox gecko gibbon goose hare hawk heron hornet ibex ibis jackal jaguar kestrel koala "
    "lark lemur lion llama lynx magpie marten mole moose otter owl panda parrot pelican puffin puma "
    "quail raven robin salmon seal shark sparrow stork swan tapir tiger toad trout walrus wolf zebra"
)

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*\Z")
MAX_NAME_CHARACTERS = 40


def is_name(text: str) -> bool:
    """Whether ``text`` may name an allocation: lower-case words of letters and digits, joined by ``-``."""
    return len(text) <= MAX_NAME_CHARACTERS and _NAME.match(text) is not None


def new_name(taken: Collection[str], chooser: random.Random) -> str:
    """A name such as ``brisk-otter`` that is not in ``taken``; numbered once the plain ones run out."""
    plain = [f"{adjective}-{animal}" for adjective in _ADJECTIVES.split() for animal in _ANIMALS.split()]
    free = [name for name in plain if name not in taken]
    if free:
        return chooser.choice(free)
    number = 2
    while (name := f"{chooser.choice(plain)}-{number}") in taken:
        number += 1
    return name
