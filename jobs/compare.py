"""Tells whether a generator got better: the metrics.json of two evaluations by the same judge.

python jobs/compare.py OLD/evaluation/metrics.json NEW/evaluation/metrics.json
"""

from raysound.job import run_command

if __name__ == "__main__":
    run_command("raysound.comparison:compare_files", 2, __doc__)
