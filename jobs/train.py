"""Trains the judge, a classifier of log-mels, on the real corpus that jobs/extract.py prepared.

python jobs/train.py configs/demo.yaml [key=value ...]
"""

from raysound.job import run_job

if __name__ == "__main__":
    run_job("raysound.distributed.train:train", __doc__)
