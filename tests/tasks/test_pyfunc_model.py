"""The registered model as MLflow serves it: our own numbers, in this process and in `mlflow models predict`."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient, artifacts, pyfunc
from mlflow.exceptions import MlflowException

from kronos_model.context import Context
from kronos_model.errors import DataError
from kronos_model.forecaster import Forecaster
from kronos_model.postprocess import PostProcess
from kronos_model.sampling import SamplingConfig
from kronos_model.served import Served
from tests.support.champions import RECIPE, Nights
from tests.support.datasets import HOUR_MS, START_MS, make_candles
from tests.support.quantiles import path_quantiles

TOLD = ["probability_up", "expected_return", "volatility"]
QUANTILES = [f"q{level:02d}" for level in range(5, 100, 5)]


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Nights:
    nights = Nights.at(tmp_path_factory.mktemp("served"))
    nights.finish(1)
    return nights


@pytest.fixture(scope="module")
def folder(nights: Nights, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `models:/kronos-demo@champion` holds."""
    version = MlflowClient(nights.home.mlflow_uri).get_model_version_by_alias(f"kronos-{RECIPE}", "champion")
    target = tmp_path_factory.mktemp("model")
    return Path(artifacts.download_artifacts(version.source, dst_path=str(target)))


@pytest.fixture(scope="module")
def served(folder: Path) -> pyfunc.PyFuncModel:
    return pyfunc.load_model(str(folder))


def _candles(*names: str, rows: int = 24) -> pd.DataFrame:
    """A long table of hourly candles, a different market for each name."""
    frames = []
    for seed, name in enumerate(names):
        made = make_candles(rows, seed=seed)
        columns = {column: made[column].to_numpy() for column in ("open", "high", "low", "close", "volume")}
        times = (START_MS + HOUR_MS * np.arange(rows)).astype("datetime64[ms]").astype("datetime64[ns]")
        amount = made["quote_volume"].to_numpy()
        frames.append(pd.DataFrame({"series": name, "open_time": times, **columns, "amount": amount}))
    return pd.concat(frames, ignore_index=True)


def test_the_served_model_gives_the_forecasters_quantiles_per_series_and_step(
    nights: Nights, served: pyfunc.PyFuncModel
) -> None:
    table = _candles("um:DOGEUSDT", "spot:BTCUSDT")
    found = served.predict(table, params={"samples": 6, "seed": 3, "horizon": 3})
    assert list(found.columns) == ["series", "open_time", "step", "mean", *TOLD, *QUANTILES]
    champion = nights.champion()
    ours = Forecaster.load(nights.home.root / champion.tokenizer, nights.home.root / champion.predictor)
    for name, rows in table.groupby("series", sort=False):
        times = START_MS + HOUR_MS * np.arange(24 + 3)
        features = rows[["open", "high", "low", "close", "volume", "amount"]].to_numpy(np.float32)
        paths = ours.paths(
            features[None], times[None, :24], times[None, 24:], [name], config=SamplingConfig(samples=6), seed=3
        ).paths[0, :, :, 3]  # fmt: skip
        mine = found[found["series"] == name]
        assert mine["step"].tolist() == [1, 2, 3]
        assert mine["open_time"].to_numpy("datetime64[ms]").astype(int).tolist() == times[24:].tolist()
        expected = path_quantiles(paths.astype(np.float64), np.arange(1, 20) / 20).T
        np.testing.assert_allclose(mine[QUANTILES].to_numpy(), expected, rtol=1e-12)
        np.testing.assert_allclose(mine["mean"], paths.mean(axis=0, dtype=np.float64), rtol=1e-12)


def test_a_longer_horizon_than_the_model_was_made_for_is_refused(served: pyfunc.PyFuncModel) -> None:
    with pytest.raises(
        DataError, match=r"horizon of at most the 4 candles that the model was made for, found 5"
    ):
        served.predict(_candles("um:DOGEUSDT"), params={"horizon": 5})


def test_signature_input_example_and_defaults_are_those_of_the_night(
    served: pyfunc.PyFuncModel, folder: Path
) -> None:
    signature = served.metadata.signature
    required = [column.name for column in signature.inputs.inputs if column.required]
    assert required == ["series", "open_time", "open", "high", "low", "close", "volume"]
    assert {one.name: one.default for one in signature.params.params} == {
        "horizon": 4,
        "samples": 8,
        "seed": 0,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
    }
    example = served.metadata.load_input_example(str(folder))
    assert list(example.columns[:2]) == ["series", "open_time"]
    assert len(served.predict(example)) == 4


def test_nothing_in_a_registered_model_is_a_pickle_and_the_weights_are_the_champions(
    nights: Nights, folder: Path
) -> None:
    files = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert {path.suffix for path in files} <= {"", ".py", ".md", ".json", ".yaml", ".txt", ".safetensors"}
    for part in ("tokenizer", "predictor"):
        kept = nights.home.root / getattr(nights.champion(), part) / "model.safetensors"
        assert (folder / "artifacts" / part / "model.safetensors").read_bytes() == kept.read_bytes()


def test_an_amount_that_is_missing_is_estimated_and_a_volume_that_is_missing_refused(
    served: pyfunc.PyFuncModel,
) -> None:
    table = _candles("um:DOGEUSDT")
    estimate = table["volume"] * table[["open", "high", "low", "close"]].mean(axis=1)
    pd.testing.assert_frame_equal(
        served.predict(table.drop(columns="amount")), served.predict(table.assign(amount=estimate))
    )
    with pytest.raises(MlflowException, match="volume"):
        served.predict(table.drop(columns="volume"))


@pytest.mark.parametrize("rows", [[0, 1, 3, 4], [1, 0, 2, 3]])
def test_candles_with_a_hole_or_out_of_order_are_refused(rows: list[int], served: pyfunc.PyFuncModel) -> None:
    with pytest.raises(
        DataError, match=r"um:DOGEUSDT: expected consecutive candles, oldest first, 3600 s apart"
    ):
        served.predict(_candles("um:DOGEUSDT").iloc[rows])


def test_a_blended_champion_is_registered_and_served_as_it_was_judged(tmp_path: Path) -> None:
    nights = Nights.at(tmp_path)
    known = PostProcess(
        horizon=4,
        lookback=16,
        interval="1h",
        temperature=0.7,
        top_k=0,
        top_p=0.9,
        location=(0.0,),
        members=("network", "ewma", "bootstrap"),
        weights=(0.4, 0.3, 0.3),
        spread=None,
        spread_alone=None,
        origins=40,
        samples=20,
    )
    known.save(Path(nights.train(1).predictor))
    nights.finish(1)
    version = MlflowClient(nights.home.mlflow_uri).get_model_version_by_alias(f"kronos-{RECIPE}", "champion")
    model = pyfunc.load_model(artifacts.download_artifacts(version.source, dst_path=str(tmp_path / "model")))
    defaults = {one.name: one.default for one in model.metadata.signature.params.params}
    assert (defaults["temperature"], defaults["top_p"]) == (0.7, 0.9)
    table = _candles("um:DOGEUSDT", rows=200)
    found = model.predict(table, params={"samples": 9, "seed": 3})
    champion = nights.champion()
    folders = (nights.home.root / part for part in (champion.tokenizer, champion.predictor))
    served = Served.load(*folders, name="champion")
    features = table[["open", "high", "low", "close", "volume", "amount"]].to_numpy(np.float32)
    times = START_MS + HOUR_MS * np.arange(204)
    context = Context(
        features=features[None, 184:],
        open_time=times[None, 184:200],
        future_open_time=times[None, 200:],
        series=["um:DOGEUSDT"],
        history=features[None, 32:, 3].astype(np.float64),
    )
    close = served.paths(context, known.sampling(9), 3).paths[0, :, :, 3].astype(np.float64)
    np.testing.assert_allclose(found["q95"], path_quantiles(close, 0.95), rtol=1e-12)
    with pytest.raises(DataError, match=r"expected the newest 16 candles or more, .*, found 15"):
        model.predict(table.tail(15))


@pytest.mark.slow
def test_mlflow_models_predict_serves_it_in_a_process_of_its_own_from_another_folder(
    folder: Path, served: pyfunc.PyFuncModel, tmp_path: Path
) -> None:
    table = _candles("um:DOGEUSDT")
    question = {"dataframe_split": json.loads(table.to_json(orient="split", date_format="iso", index=False))}
    (tmp_path / "input.json").write_text(json.dumps(question))
    command = "from mlflow.cli import cli; cli()"
    arguments = ["models", "predict", "-m", str(folder), "-i", "input.json", "-t", "json", "-o", "out.json"]
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHONPATH", "MLFLOW_"))
    }
    done = subprocess.run(
        [sys.executable, "-c", command, *arguments, "--env-manager", "local"],
        cwd=tmp_path,
        env=inherited,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads((tmp_path / "out.json").read_text())["predictions"]
    expected = served.predict(table)
    np.testing.assert_allclose([row["q50"] for row in answer], expected["q50"], rtol=1e-12)
    text = io.StringIO(json.dumps([row["open_time"] for row in answer]))
    assert pd.to_datetime(json.load(text)).to_numpy("datetime64[ms]").tolist() == (
        expected["open_time"].to_numpy("datetime64[ms]").tolist()
    )
