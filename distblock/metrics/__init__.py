"""What a run measures: sums per stage and edge, the Prometheus exporter, and the tables of the run directory."""
