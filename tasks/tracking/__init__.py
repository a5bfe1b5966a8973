"""MLflow: all that imports it, but for tasks/pyfunc_model.py, which MLflow runs where a model is served.

A run is found again by its identity tag, so a resumed night continues its run instead of starting a second one.
All calls go through MlflowClient: MLflow's "active run" is thread-local and would not be seen by other threads.
"""
