"""Classification accuracy score: trains on generated clips, tests on real ones, and the reverse.

python jobs/cas.py configs/demo.yaml [key=value ...]
"""

from raysound.distributed.cas import cas
from raysound.distributed.session import run_job

if __name__ == "__main__":
    run_job(cas, __doc__)
