"""The config of an experiment: all sections of the YAML file as one frozen, validated model."""

from __future__ import annotations

import yaml
from pydantic import model_validator

from raysound.settings.compute import ComputeSettings
from raysound.settings.corpora import CorporaSettings
from raysound.settings.evaluation import EvaluationSettings
from raysound.settings.features import FeatureSettings
from raysound.settings.fields import CorpusName, PathOrUri, Section
from raysound.settings.search import HyperBandScheduler, PopulationBasedTraining, SearchSettings
from raysound.settings.synthesis import SynthesisSettings
from raysound.settings.training import ModelSettings, TrainingSettings


class Config(Section):
    """The settings of an experiment."""

    name: CorpusName
    """Name of the experiment."""
    output: PathOrUri
    """Folder of all results; a path or URI."""
    corpora: CorporaSettings
    features: FeatureSettings = FeatureSettings()
    model: ModelSettings = ModelSettings()
    training: TrainingSettings = TrainingSettings()
    search: SearchSettings = SearchSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    compute: ComputeSettings = ComputeSettings()
    synthesis: SynthesisSettings = SynthesisSettings()

    @model_validator(mode="after")
    def _batches_split_evenly(self) -> Config:
        # Between the ends of a range, clips that do not divide evenly go to a later batch.
        for workers in self.compute.workers_range:
            if self.training.batch_size % workers:
                raise ValueError(
                    f"training.batch_size {self.training.batch_size} can't be split evenly over "
                    f"compute.workers {workers}"
                )
        return self

    @model_validator(mode="after")
    def _real_clips_or_a_reference(self) -> Config:
        if self.evaluation.reference is None:
            if self.corpora.real is None:
                raise ValueError(
                    "'corpora.real' is missing: name the real recordings, or name a file of "
                    "jobs/reference.py as evaluation.reference"
                )
            return self
        if self.corpora.real is not None:
            raise ValueError(
                "evaluation.reference replaces the real recordings: leave out either it or "
                "corpora.real"
            )
        if self.evaluation.checkpoint is None:
            raise ValueError(
                "evaluation.reference requires evaluation.checkpoint, the folder of its classifier"
            )
        if not self.corpora.generated:
            raise ValueError("evaluation.reference requires corpora.generated")
        if self.evaluation.copies is not None:
            raise ValueError(
                "evaluation.copies compares with the real recordings, which evaluation.reference "
                "does not contain: leave out one of them"
            )
        return self

    @model_validator(mode="after")
    def _sections_fit_together(self) -> Config:
        training = self.training
        share = training.batch_size // self.compute.workers_range[1]
        if training.gradient_accumulation_steps > share:
            raise ValueError(
                "training.gradient_accumulation_steps "
                f"{training.gradient_accumulation_steps} is more than the {share} clips of a "
                "training.batch_size that each worker has"
            )
        crop, clip = training.crop_length, self.features.clip_length
        if crop is not None and crop > clip:
            raise ValueError(
                f"training.crop_length {crop:g} s is longer than features.clip_length {clip:g} s"
            )
        scheduler = self.search.scheduler
        workers = self.compute.workers_range[1]
        if workers > 1 and isinstance(scheduler, HyperBandScheduler | PopulationBasedTraining):
            raise ValueError(
                f"search.scheduler {scheduler.name} pauses trials and copies their weights, which "
                "Ray Tune can't do for trials with several workers: use ASHAScheduler, or "
                "compute.workers 1"
            )
        return self

    def to_yaml(self) -> str:
        """The config with all defaults, as YAML that `load` accepts."""
        hidden = set() if self.search.space else {"search"}
        tree = self.model_dump(mode="json", exclude=hidden)
        tree["features"].setdefault("loudness", "none")
        return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
