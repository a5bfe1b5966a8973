"""The long table of an evaluation's forecasts."""

import numpy as np
import polars as pl
import pytest

from storage.errors import StorageError
from storage.evaluations import ForecastTable, forecast_frame, paths_frame, quantile_name

MODELS, SERIES, LEVELS = (
    ("challenger", "last_value"),
    ("um:DOGEUSDT", "um:BTCUSDT", "um:DOGEUSDT"),
    (0.05, 0.5),
)
H, HOUR_MS = 4, 3_600_000
ORIGINS = np.array([0, 0, 5], np.int64) * HOUR_MS + 1_720_000_000_000


def frame(seed: int = 1) -> tuple[pl.DataFrame, dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    arrays = {
        "quantiles": rng.random((2, 3, H, 2)),
        "mean": rng.random((2, 3, H)),
        "realised": rng.random((3, H)),
        "open_time": ORIGINS[:, None] + HOUR_MS * np.arange(1, H + 1),
    }
    made = forecast_frame(models=MODELS, series=SERIES, origin_ms=ORIGINS, levels=LEVELS, **arrays)
    return made, arrays


def test_every_row_is_one_series_origin_step_and_model():
    made, arrays = frame()
    rows = iter(made.iter_rows(named=True))
    for b in range(3):
        for h in range(H):
            for m in range(2):
                row = next(rows)
                assert (row["series"], row["model"], row["step"]) == (SERIES[b], MODELS[m], h + 1)
                assert row["origin"].timestamp() * 1000 == ORIGINS[b]
                assert row["open_time"].timestamp() * 1000 == arrays["open_time"][b, h]
                assert row["mean"] == arrays["mean"][m, b, h]
                assert row["realised"] == arrays["realised"][b, h]
                assert [row["q0.05"], row["q0.5"]] == arrays["quantiles"][m, b, h].tolist()
    assert next(rows, None) is None
    assert made.schema["origin"] == pl.Datetime("ms", "UTC")


def test_quantile_columns_are_named_by_their_level():
    assert [quantile_name(level) for level in (0.025, 0.05, 0.5)] == ["q0.025", "q0.05", "q0.5"]


def test_parts_become_one_file_in_order_and_a_part_written_twice_counts_once(tmp_path):
    table = ForecastTable(tmp_path, "forecasts")
    first, second = frame(1)[0], frame(2)[0]
    for part, rows in ((1, second), (0, second), (0, first)):
        table.write(part, rows)
    for _ in range(2):
        table.join(tmp_path / "whole")
        assert ForecastTable(tmp_path / "whole", "forecasts").read().equals(pl.concat([first, second]))
        assert [path.name for path in (tmp_path / "whole").iterdir()] == ["forecasts.parquet"]


def test_a_table_that_was_never_written_has_no_file_and_reading_it_ends_in_a_sentence(tmp_path):
    table = ForecastTable(tmp_path, "paths")
    table.join(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StorageError, match="delete that evaluation's folder and evaluate again"):
        table.read()
    table.path.write_bytes(b"not parquet")
    with pytest.raises(StorageError, match="evaluate again"):
        table.read()


def test_paths_are_lists_of_closes_by_model_origin_and_sample():
    paths = {name: np.random.default_rng(3).random((3, 5, H)).astype(np.float32) for name in MODELS}
    made = paths_frame(paths, series=SERIES, origin_ms=ORIGINS)
    assert made.height == 2 * 3 * 5
    row = made.filter(pl.col("model") == "last_value", pl.col("sample") == 2)[2]
    assert row["closes"][0].to_list() == paths["last_value"][2, 1].tolist()
    assert row["origin"].dt.epoch("ms").item() == ORIGINS[2]
