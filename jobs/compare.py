"""Tells whether a generator got better: the metrics.json of two evaluations by the same judge.

python jobs/compare.py OLD/evaluation/metrics.json NEW/evaluation/metrics.json
"""

from raysound.comparison import run_comparison

if __name__ == "__main__":
    run_comparison(__doc__)
