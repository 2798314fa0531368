"""What a user of Fewbit imports: the contract's models and the client."""

from fewbit.report import Report
from fewbit.resources import Artifact, Dataset, Job, Model
from fewbit.spec import JobSpec
from fewbit.version import VERSION as __version__

__all__ = ["Artifact", "Dataset", "Job", "JobSpec", "Model", "Report", "__version__"]
