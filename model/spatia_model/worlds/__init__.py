"""Procedural ground-truth places: what the model is trained on, and the yardstick of every evaluation."""

from spatia_model.worlds.captions import MAX_WORDS, VOCABULARY
from spatia_model.worlds.kernel import FAR
from spatia_model.worlds.movers import Mover
from spatia_model.worlds.world import World

__all__ = ["FAR", "MAX_WORDS", "VOCABULARY", "Mover", "World"]
