"""The paper's experiment in small: `python -m experiments.clickme`."""
