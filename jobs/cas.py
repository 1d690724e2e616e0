"""Classification accuracy score: trains on generated clips, tests on real ones, and the reverse.

python jobs/cas.py configs/demo.yaml [key=value ...]
"""

from raysound.job import run_job

if __name__ == "__main__":
    run_job("raysound.distributed.cas:cas", __doc__)
