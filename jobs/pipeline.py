"""The whole road: synthesize (where the config says so), extract, train, evaluate.

python jobs/pipeline.py configs/demo.yaml [key=value ...]
"""

from raysound.job import run_job

if __name__ == "__main__":
    run_job("raysound.distributed.pipeline:run_all", __doc__)
