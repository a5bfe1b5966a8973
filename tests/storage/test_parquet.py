"""Parquet files: bytes by content alone."""

import random

import polars as pl

from storage.parquet import read_parquet, write_parquet
from tests.support.candles import full_candles


def test_equal_frames_give_equal_bytes_however_they_were_put_together(tmp_path):
    whole = full_candles(3000).with_columns(
        trades=pl.when(pl.int_range(pl.len()) % 7 == 0).then(None).otherwise("trades")
    )
    cuts = sorted(random.Random(1).sample(range(1, 3000), 40))
    pieces = [whole[first:last] for first, last in zip([0, *cuts], [*cuts, 3000], strict=True)]
    built = [
        whole,
        pl.concat(pieces, rechunk=False),
        pl.concat(
            [pl.DataFrame(piece.to_dict(as_series=False), schema=whole.schema) for piece in pieces],
            rechunk=False,
        ),
        whole.filter(pl.col("open") > 0),
        pl.concat(pieces[::-1]).sort("open_time"),
    ]
    contents = set()
    for at, frame in enumerate(built):
        assert frame.equals(whole)
        write_parquet(frame, tmp_path / f"{at}.parquet")
        contents.add((tmp_path / f"{at}.parquet").read_bytes())
    assert len(contents) == 1
    assert read_parquet(tmp_path / "0.parquet").equals(whole)
