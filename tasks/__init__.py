"""One Prefect task per side effect: load, call, store, return a reference."""
