"""Writes what others need to evaluate against the real recordings without having them: one file.

python jobs/reference.py configs/demo.yaml [key=value ...]
"""

from raysound.job import run_job

if __name__ == "__main__":
    run_job("raysound.distributed.reference:reference", __doc__)
