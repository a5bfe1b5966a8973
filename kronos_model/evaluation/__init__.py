"""Judging forecasts: competitors, walk-forward scores, leaderboard, gate.

Import from the modules: config and gate cost numpy alone, the others torch and the scoring library.
"""
