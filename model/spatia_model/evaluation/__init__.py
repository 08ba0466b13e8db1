"""Figures that say how good a model is: pictures, motion, memory, and what happens when text asks for it."""
