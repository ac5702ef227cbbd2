"""The parts of `bench_ppo.py`: workloads and their arithmetic, ceilings, the implementations, interleaving, report."""
