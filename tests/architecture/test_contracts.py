"""The import contracts hold whole packages: a new module that breaks one is found without being listed anywhere."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("flows", "tasks", "service", "exchange", "storage", "kronos_model")

BREACHES = {
    "flows/new_flow.py": "import flows.cli.program",
    "flows/site/new_process.py": "import flows.cli.screen",
    "flows/new_step.py": "import flows.site.processes",
    "flows/new_tracking.py": "import mlflow",
    "tasks/new_task.py": "import mlflow",
    "tasks/reports/new_report.py": "import mlflow",
    "tasks/new_upward.py": "import flows.nightly",
    "service/new_route.py": "import prefect",
    "service/new_wrap.py": "import tasks.forecast",
    "exchange/new_client.py": "import prefect",
    "exchange/new_model.py": "import torch",
    "storage/new_store.py": "import exchange.rest",
    "storage/new_features.py": "import kronos_model.features",
    "kronos_model/new_part.py": "import polars",
    "kronos_model/new_lake.py": "import storage.lake",
    "kronos_model/new_judge.py": "import kronos_model.evaluation.gate",
    "kronos_model/new_score.py": "import scoringrules",
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("product")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__", "web"))
    shutil.copy(ROOT / "pyproject.toml", root)
    return root


def _broken(root: Path) -> list[str]:
    command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run(
        [sys.executable, "-c", command, "--no-cache"],
        cwd=root,
        env={"PYTHONPATH": str(root), "PATH": "", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Contracts:" in done.stdout, done.stdout + done.stderr
    assert (done.returncode != 0) == ("BROKEN" in done.stdout)
    return [line for line in done.stdout.splitlines() if " BROKEN" in line]


def test_the_product_as_it_is_breaks_none(copy: Path) -> None:
    assert _broken(copy) == []


@pytest.mark.parametrize("name", BREACHES)
def test_a_new_module_that_reaches_where_it_must_not_is_found(copy: Path, name: str) -> None:
    module = copy / name
    module.write_text(f'"""A module that nobody has listed."""\n\n{BREACHES[name]}\n')
    try:
        assert _broken(copy), BREACHES[name]
    finally:
        module.unlink()
