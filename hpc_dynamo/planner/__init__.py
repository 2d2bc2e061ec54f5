"""Profiles, predictors, and how many workers of each role a load needs: pure decisions.

`signals` says what is seen and what is decided; who acts on it is the head, or the simulation.
"""
