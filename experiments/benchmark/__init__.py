"""The parts of `bench_ppo.py` and `bench_dpo.py`: workloads and their arithmetic, ceilings, the implementations, interleaving, report."""
