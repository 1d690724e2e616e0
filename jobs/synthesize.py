"""Makes labelled corpora: by formula, or from real clips through log-mel and back.

python jobs/synthesize.py configs/demo.yaml [key=value ...]
"""

from raysound.distributed.session import run_job
from raysound.distributed.synthesize import synthesize

if __name__ == "__main__":
    run_job(synthesize, __doc__)
