"""Trains the judge, a classifier of log-mels, on the real corpus that jobs/extract.py prepared.

python jobs/train.py configs/demo.yaml [key=value ...]
"""

from raysound.distributed.session import run_job
from raysound.distributed.train import train

if __name__ == "__main__":
    run_job(train, __doc__)
