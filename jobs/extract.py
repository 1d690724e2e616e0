"""Turns the sounds of every corpus into log-mel arrays, stored as Parquet.

python jobs/extract.py configs/demo.yaml [key=value ...]
"""

from raysound.job import run_job

if __name__ == "__main__":
    run_job("raysound.distributed.extract:extract", __doc__)
