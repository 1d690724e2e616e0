"""Turns the sounds of every corpus into log-mel arrays, stored as Parquet.

python jobs/extract.py configs/demo.yaml [key=value ...]
"""

from raysound.distributed.extract import extract
from raysound.distributed.session import run_job

if __name__ == "__main__":
    run_job(extract, __doc__)
