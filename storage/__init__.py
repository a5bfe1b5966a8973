"""Bytes at rest: candles, datasets, forecasts."""
