"""Tells how good a sound generator is, by a classifier trained on real sounds."""
