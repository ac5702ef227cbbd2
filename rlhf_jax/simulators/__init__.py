"""Users to talk to: the simulated world (known truth) and scripted probes (known optimum)."""
