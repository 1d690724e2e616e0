"""Searches settings of the judge by Ray Tune, as the config's section `search` says.

python jobs/tune.py configs/demo-search.yaml [key=value ...]
"""

from raysound.distributed.session import run_job
from raysound.distributed.tune import tune

if __name__ == "__main__":
    run_job(tune, __doc__)
