"""The forecast API and the live dashboard, over a home; knows neither Prefect nor MLflow."""
