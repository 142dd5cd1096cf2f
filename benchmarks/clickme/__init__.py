"""What ``benchmarks/clickme_experiment.py`` is made of."""
