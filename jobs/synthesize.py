"""Makes labelled corpora: by formula, or from real clips through log-mel and back.

python jobs/synthesize.py configs/demo.yaml [key=value ...]
"""

from raysound.job import run_job

if __name__ == "__main__":
    run_job("raysound.distributed.synthesize:synthesize", __doc__)
