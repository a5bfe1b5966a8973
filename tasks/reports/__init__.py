"""Everything a run leaves for people to look at: charts, the page, artifacts, model cards."""
