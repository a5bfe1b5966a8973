"""Binance on the wire."""
