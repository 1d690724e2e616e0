"""The whole road: synthesize (where the config says so), extract, train, evaluate.

python jobs/pipeline.py configs/demo.yaml [key=value ...]
"""

from raysound.distributed.pipeline import run_all
from raysound.distributed.session import run_job

if __name__ == "__main__":
    run_job(run_all, __doc__)
