"""Judging forecasts: competitors, scores, gate."""
