"""Lets the judge score every corpus and writes metrics.json and report.html.

python jobs/evaluate.py configs/demo.yaml [key=value ...]
"""

from raysound.job import run_job

if __name__ == "__main__":
    run_job("raysound.distributed.evaluate:evaluate", __doc__)
