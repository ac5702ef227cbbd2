"""Reports: tables, figures and pages from `results.json` and `metrics.jsonl`. Draws, never computes: no network is run here."""
