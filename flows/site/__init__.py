"""`kronos up`, worker, deploy, doctor: the processes of a site and what the Prefect server is told."""
