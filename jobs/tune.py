"""Searches settings of the judge by Ray Tune, as the config's section `search` says.

python jobs/tune.py configs/demo-search.yaml [key=value ...]
"""

from raysound.job import run_job

if __name__ == "__main__":
    run_job("raysound.distributed.tune:tune", __doc__)
