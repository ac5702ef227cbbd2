"""The parts of `bench_ppo.py`, `bench_dpo.py` and `bench_grpo.py`: workloads and their arithmetic, ceilings, the implementations, interleaving, report."""
